"""QEMU: its command line, its monitor protocol, its process, its disks."""
