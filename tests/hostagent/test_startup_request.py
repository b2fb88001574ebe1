"""What the argument of `up` means."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostagent.config.loader import ConfigError
from hostagent.errors import UserError
from hostagent.paths import InstancePaths
from hostagent.startup_request import startup_request

CONFIG = "images: [{build: debian-12}]\ncpus: 3\n"


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOSTAGENT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def instance(name: str, config: str | None = CONFIG) -> None:
    paths = InstancePaths.of(name)
    paths.directory.mkdir(parents=True)
    if config is not None:
        paths.config.write_text(config)


def test_nothing_at_all_is_the_default_template() -> None:
    request = startup_request(None, None)
    assert (request.paths.name, request.from_instance) == ("default", False)
    assert not request.paths.directory.exists(), "asking creates nothing"


@pytest.mark.parametrize("argument", [None, "default", "web.yaml"])
def test_an_empty_name_is_none(tmp_path: Path, argument: str | None) -> None:
    (tmp_path / "web.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match="'' is not a usable instance name"):
        startup_request(argument, "")


def test_nothing_is_the_only_instance() -> None:
    instance("web")
    request = startup_request(None, None)
    assert (request.paths.name, request.from_instance, request.loaded.config.cpus) == ("web", True, 3)


def test_nothing_is_not_one_of_many() -> None:
    instance("web")
    instance("db")
    with pytest.raises(UserError, match="more than one") as caught:
        startup_request(None, None)
    assert caught.value.hint == "name one of: db, web"


def test_what_is_no_instance_does_not_count() -> None:
    """Hidden folders and files in the home, as `list` sees it."""
    instance("web")
    InstancePaths.of("web").directory.parent.joinpath(".trash").mkdir()
    InstancePaths.of("backups").directory.mkdir()
    InstancePaths.of("web").directory.parent.joinpath("notes").touch()
    assert startup_request(None, None).paths.name == "web"


@pytest.mark.parametrize("argument", ["web.yaml", "./web.yaml", "folder/../web.yaml", "Web.YML"])
def test_a_file_names_its_instance(tmp_path: Path, argument: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / Path(argument).name).write_text(CONFIG)
    request = startup_request(argument, None)
    assert (request.paths.name, request.from_instance, request.loaded.config.cpus) == ("web", False, 3)


def test_a_name_can_be_given_with_a_file_or_a_template(tmp_path: Path) -> None:
    (tmp_path / "My VM.yaml").write_text(CONFIG)
    assert startup_request("My VM.yaml", "mine").paths.name == "mine"
    with pytest.raises(UserError, match="no instance can be named after") as caught:
        startup_request("My VM.yaml", None)
    assert "--name" in caught.value.hint
    request = startup_request("debian-13", "mine")
    assert (request.paths.name, request.from_instance) == ("mine", False)


def test_an_instance_goes_before_a_template_of_the_same_name() -> None:
    assert not startup_request("debian-12", None).from_instance
    instance("debian-12")
    request = startup_request("debian-12", None)
    assert request.from_instance
    assert request.loaded.config.cpus == 3


def test_a_name_alone_is_that_instance() -> None:
    instance("web")
    assert startup_request(None, "web").from_instance
    assert startup_request("web", None).from_instance
    assert startup_request("default", "web").from_instance


def test_a_name_alone_that_no_instance_has_is_the_default_template_by_that_name() -> None:
    request = startup_request(None, "q")
    assert (request.paths.name, request.from_instance) == ("q", False)
    assert request.loaded == startup_request("default", None).loaded
    assert startup_request(None, "debian-13").loaded == request.loaded, "a name is no template"


def test_an_instance_that_never_got_its_configuration(tmp_path: Path) -> None:
    """What is left of an `up` that was killed while it prepared."""
    instance("default", None)
    assert not startup_request(None, None).from_instance
    instance("web", None)
    with pytest.raises(UserError, match="'web' is no instance, no template"):
        startup_request("web", None)


@pytest.mark.parametrize("argument", ["nothing", "../web", "web/", "x.yaml", "", "WEB", "-"])
def test_what_is_nothing(argument: str) -> None:
    with pytest.raises(UserError):
        startup_request(argument, None)


@pytest.mark.parametrize(("argument", "meant"), [("debian13", "debian-13"), ("my-wed", "my-web")])
def test_what_was_nearly_meant(argument: str, meant: str) -> None:
    instance("my-web")
    with pytest.raises(UserError) as caught:
        startup_request(argument, None)
    assert caught.value.hint.startswith(f"did you mean {meant!r}? templates are default, ")


def test_mistakes_of_a_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text("cpus: many\n")
    with pytest.raises(ConfigError):
        startup_request("web.yaml", None)
