"""Every mistake at once, each at its place; and nothing but a configuration or `ConfigError`, whatever the bytes."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostagent.config.loader import (
    MAX_BYTES,
    ConfigError,
    HostDefaults,
    LoadedConfig,
    Mistake,
    load_config,
    read_config,
)
from hostagent.config.mistakes import MAX_LISTED

HOST = HostDefaults("x86_64", 2)
IMAGES = "images: [{build: debian-12}]\n"

FIVE_MISTAKES = """\
cpus: many
memory: 1MiB
portForwards:
- guestPort: 80
  hostPrt: 8080
- guestPortRange: [4000, 4999]
  hostPortRange: [1, 2]
images:
- build: debian-11
"""

LIMA_STYLE = """\
minimumLimaVersion: 1.1.0
vmType: null
arch: default
cpus: null
images:
# Three kinds of entry of Lima's own templates: dated with digest, another architecture, undated.
- location: "https://cloud.example/noble-amd64.img"
  arch: "x86_64"
  digest: "sha256:ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"
- location: "https://cloud.example/noble-riscv64.img"
  arch: "riscv64"
- location: "https://cloud.example/noble-arm64.img"
  arch: "aarch64"
mountTypesUnsupported:
mounts:
- location: "~"
  9p: {cache: null}
- location: "/tmp/lima"
  writable: true
ssh:
  localPort: 60022
  loadDotSSHPubKeys: false
  forwardAgent: null
containerd:
  system: false
  user: false
provision:
- mode: system
  script: |
    #!/bin/bash
    curl -fsSL https://get.example | sh
hostResolver:
  hosts:
    host.docker.internal: host.lima.internal
env:
  PORT: 8080
  DEBUG: yes
portForwards:
- guestSocket: "/run/user/{{.UID}}/docker.sock"
  hostSocket: "{{.Dir}}/sock/docker.sock"
- guestPort: 80
  hostPort: 8080
message: |
  To use it, run the following.
"""


def load(text: str | bytes) -> LoadedConfig:
    return load_config(text if isinstance(text, bytes) else text.encode(), "c.yaml", HOST)


def error_of(text: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return caught.value


def mistakes_of(text: str) -> tuple[Mistake, ...]:
    try:
        load(text)
    except ConfigError as error:
        return error.mistakes
    return ()


def test_five_mistakes_give_five_messages_with_their_places() -> None:
    error = error_of(FIVE_MISTAKES)
    assert error.message.splitlines() == [
        "c.yaml:1:7: cpus: must be a whole number, not 'many'",
        "c.yaml:2:9: memory: must be at least 256MiB, not 1MiB",
        "c.yaml:5:3: portForwards.0.hostPrt: unknown key; did you mean 'hostPort'?",
        "c.yaml:7:18: portForwards.1.hostPortRange: has 2 ports, and the guest's side has 1000",
        "c.yaml:9:10: images.0.build: must be 'debian-12' or 'debian-13', not 'debian-11'",
    ]
    assert [(mistake.line, mistake.column) for mistake in error.mistakes] == [(1, 7), (2, 9), (5, 3), (7, 18), (9, 10)]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "c.yaml: is empty"),
        ("# only a comment\n", "c.yaml: is empty"),
        ("null\n", "c.yaml: is empty"),
        ("- a\n", "c.yaml:1:1: the file must be a mapping, with lines like `cpus: 2`"),
        ("just words\n", "c.yaml:1:1: the file must be a mapping, with lines like `cpus: 2`"),
        ("cpus: 2\n", "c.yaml:1:1: images: is missing: write `images: [{build: debian-12}]`, or"),
        (b"\x7fELF\x02\x01\x01\x00", "c.yaml:1:1: holds the control character U+007F, so it is no YAML text"),
        (b"a: b\nc\xc3\xa9: \xff", "c.yaml:2:5: the byte 0xff is not UTF-8, so this is no text file"),
        (b"\xff\xfea\x00", "c.yaml: is UTF-16 text"),
        (IMAGES + "env: !!python/object/apply:os.system [x]\n", "the tag 'tag:yaml.org,2002:python/object/apply:os.s"),
        (IMAGES + "cpus: !!int x\n", "c.yaml:2:7: cpus: 'x' does not fit its tag !!int"),
        (IMAGES + "cpus: 1\ncpus: 2\n", "c.yaml:3:1: cpus: is given twice, first on line 2"),
        (IMAGES + "containerd: {usr: 1}\n", "c.yaml:2:14: containerd.usr: unknown key; did you mean 'user'?"),
        (IMAGES + "mounts: [{lokation: x}]\n", "c.yaml:2:11: mounts.0.lokation: unknown key; did you mean 'loc"),
        (IMAGES + "port_forwards: []\n", "c.yaml:2:1: port_forwards: unknown key; did you mean 'portForwards'?"),
        (
            IMAGES + "ssh: {forwardAgnt: true}\n",
            "c.yaml:2:7: ssh.forwardAgnt: unknown key; did you mean 'forwardA",
        ),
        (IMAGES + "ssh: {loadDotSSHPubKeys: yes}\n", "must be true or false; in YAML 1.2 'yes' is a word"),
        (IMAGES + "arch: riscv64\n", "c.yaml:2:7: arch: must be 'x86_64' or 'aarch64', not 'riscv64'"),
        ("images: [{build: debian-12, arch: aarch64}]", "c.yaml:1:9: images: no entry is for the architecture x86_64"),
        (IMAGES + 'env: {"a\\e[31m": x}\n', r"c.yaml:2:7: env.'a\x1b[31m': must be the name"),
        (IMAGES + "\tcpus: 2", "(YAML is indented with spaces, not with tabs)"),
        ("a: 1\n---\nb: 2\n", "c.yaml:2:1: a second document begins here; a file has one"),
    ],
)
def test_one_mistake_is_one_message(text: str | bytes, line: str) -> None:
    error = error_of(text)
    assert line in error.message
    assert len(error.message.splitlines()) == 1
    assert error.hint
    assert error.message.isprintable()


def test_a_key_given_twice_does_not_hide_that_its_first_value_is_wrong() -> None:
    assert [mistake.line for mistake in error_of(IMAGES + "cpus: many\ncpus: 2\n").mistakes] == [2, 3]


def test_scalars_follow_the_core_schema_of_yaml_1_2() -> None:
    config = load(
        IMAGES
        + "cpus: 0x2\nuser: {uid: 0o755, comment: on}\nenv: {MODE: 0755, YES: yes, TIME: 22:22, NONE: , T: true}\n"
    ).config
    assert (config.cpus, config.user.uid, config.user.comment) == (2, 0o755, "on")
    assert config.env == {"MODE": "0755", "YES": "yes", "TIME": "22:22", "NONE": "", "T": "true"}
    assert load(IMAGES + "user: {uid: 0755}\n").config.user.uid == 755


def test_the_host_gives_what_the_file_does_not() -> None:
    config = load(IMAGES).config
    assert (config.arch, config.cpus, config.memory, config.disk) == ("x86_64", 2, 2 << 30, 100 << 30)
    host = HostDefaults.of_this_host()
    assert 1 <= host.cpus <= 4
    assert load_config(IMAGES.encode(), "c.yaml").config.cpus == host.cpus


def test_a_lima_file_runs_and_what_is_not_acted_on_is_named() -> None:
    loaded = load(LIMA_STYLE)
    assert [warning.path for warning in loaded.warnings] == [
        "minimumLimaVersion",
        "mounts",
        "ssh.localPort",
        "containerd.system",
        "containerd.user",
        "provision",
        "hostResolver.hosts",
        "message",
    ]
    assert len(loaded.config.images) == 3
    assert [image.location for image in loaded.config.usable_images()] == ["https://cloud.example/noble-amd64.img"]
    assert loaded.config.env == {"PORT": "8080", "DEBUG": "yes"}
    assert loaded.config.port_forwards[1].host_port_range == (8080, 8080)
    assert loaded.text == LIMA_STYLE


def test_a_hundred_mistakes_are_listed_and_the_rest_counted() -> None:
    error = error_of(IMAGES + "".join(f"k{i}: 1\n" for i in range(MAX_LISTED + 23)))
    assert len(error.mistakes) == MAX_LISTED
    assert error.message.splitlines()[-1] == "c.yaml: 23 more mistakes are not listed"


def _bomb() -> str:
    levels = "bcdefghijk"
    text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for below, level in zip("a" + levels, levels, strict=False):
        text += f"{level}: &{level} [{', '.join([f'*{below}'] * 10)}]\n"
    return text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (_bomb(), "holds more than"),
        ("a: &a " + "x" * 500_000 + "\nb: [" + "*a," * 9000 + "]", "holds more than"),
        ("[" * (MAX_BYTES - 1), "nests deeper"),
        ("{a: " * (MAX_BYTES // 5), "nests deeper"),
        ("- " * (MAX_BYTES // 2), "nests deeper"),
        ("a: &a [*a]", "stands inside of what it names"),
        ("a: *b", "no anchor"),
        ("[" + "1," * (MAX_BYTES // 2 - 1) + "]", "holds more than"),
        ("a" * MAX_BYTES, "must be a mapping"),
        ("".join(f"portForward{i}: 1\n" for i in range(9000)), "more mistakes"),
        (IMAGES + "env:\n" + "".join(f" k {i}: 1\n" for i in range(9000)), "more mistakes"),
        (" " * (MAX_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_hostile_files_cost_bounded_time(text: str, reason: str) -> None:
    began = time.process_time()
    assert reason in error_of(text).message
    assert time.process_time() - began < 5


@settings(max_examples=300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_a_configuration_or_the_documented_error(data: bytes) -> None:
    with pytest.raises(ConfigError):
        load(data)


_KEYS = ["images", "build", "cpus", "env", "user", "uid", "ssh", "portForwards", "guestPort", "containerd"]
_LEAVES = st.sampled_from(
    [
        "",
        "~",
        "yes",
        "1",
        "-1",
        "0x1",
        "1e999",
        ".nan",
        "debian-12",
        "any",
        "!!int 1",
        "!x y",
        "&a b",
        "*a",
        "'\\e'",
        "<<",
    ]
)
_VALUES = st.recursive(
    _LEAVES,
    lambda below: (
        st.lists(below, max_size=4).map(lambda items: f"[{', '.join(items)}]")
        | st.lists(st.tuples(st.sampled_from(_KEYS), below), max_size=4).map(
            lambda pairs: "{" + ", ".join(f"{key}: {value}" for key, value in pairs) + "}"
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(_KEYS), _VALUES), max_size=6))
def test_any_yaml_of_our_keys_gives_a_configuration_or_the_documented_error(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"{key}: {value}\n" for key, value in pairs)
    lines = text.splitlines()
    for mistake in mistakes_of(text):
        assert 1 <= mistake.line <= len(lines) + 1
        assert mistake.column <= max(len(line) for line in lines) + 1
        assert mistake.described("c.yaml").isprintable()


def test_files_that_cannot_be_read_are_one_clear_message(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            read_config(path)
        return caught.value.message

    (tmp_path / "large.yaml").write_bytes(b"#" * (10 << 20))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    assert message(tmp_path / "none.yaml") == f"there is no file {tmp_path}/none.yaml"
    assert message(tmp_path) == f"{tmp_path} is a directory"
    assert message(tmp_path / "fifo") == f"{tmp_path}/fifo is not a regular file"
    assert message(Path("/dev/zero")) == "/dev/zero is not a regular file"
    assert message(tmp_path / "large.yaml").endswith("is larger than 1 MiB")
    assert "symbolic links" in message(tmp_path / "loop")
    assert r"\x1b[31m" in message(tmp_path / "\x1b[31m")
    assert "cannot be read" in message(tmp_path / ("x" * 300))


def test_a_file_without_read_permission(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(IMAGES)
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match="permission denied"):
            read_config(path)
    finally:
        os.seteuid(user)


def test_a_file_is_read_with_its_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + IMAGES.encode())
    assert read_config(path).config.images[0].build == "debian-12"
