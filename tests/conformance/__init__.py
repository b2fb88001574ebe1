"""Conformance: what any forwarder of guest ports must do, tried from outside."""
