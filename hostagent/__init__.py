"""The host side: the `hostagent` command and one agent process per running instance."""
