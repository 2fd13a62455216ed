"""Names that are built in, added by entry points, or spelled as ``package.module:attribute``."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from typing import Protocol, runtime_checkable

import pytest

from analogy.core import registry
from analogy.core.registry import ExtensionError, Registry, UnknownNameError


@runtime_checkable
class Greeter(Protocol):
    def greet(self) -> str: ...


class Hello:
    def greet(self) -> str:
        return "hello"


hello = Hello()
number = 3

GREETERS = Registry[Greeter]("greeter", "analogy.greeters", {"hello": f"{__name__}:hello"}, Greeter)


@pytest.fixture
def added(monkeypatch):
    """An installed package adds the name ``guten-tag``."""
    found = [EntryPoint("guten-tag", f"{__name__}:hello", "analogy.greeters")]
    monkeypatch.setattr(registry, "entry_points", lambda group: found)
    registry.rescan()
    yield
    registry.rescan()


def test_what_is_built_in_is_found_by_its_name():
    assert GREETERS.names() == ("hello",)
    assert GREETERS.get("hello") is hello
    assert GREETERS.is_builtin("hello")


def test_an_installed_package_adds_a_name(added):
    assert GREETERS.names() == ("hello", "guten-tag")
    assert GREETERS.get("guten-tag") is hello
    assert not GREETERS.is_builtin("guten-tag")
    assert GREETERS.is_installed("guten-tag")


def test_an_object_is_named_by_its_module():
    spec = f"{__name__}:hello"
    assert GREETERS.check(spec) == spec
    assert GREETERS.get(spec) is hello
    assert not GREETERS.is_installed(spec)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match=r"one of hello, .* got 'helo'; .* 'hello'\?"):
        GREETERS.check("helo")


def test_checking_a_name_imports_nothing():
    assert GREETERS.check("no_such_module_at_all:thing")
    assert "no_such_module_at_all" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_module_at_all:thing", f"{__name__}:nothing"])
def test_what_cannot_be_imported_is_said(name):
    with pytest.raises(ExtensionError, match=f"greeter {name}: expected .* importable"):
        GREETERS.get(name)


def test_what_does_not_keep_the_protocol_is_said():
    with pytest.raises(ExtensionError, match="with what Greeter asks for, got int"):
        GREETERS.get(f"{__name__}:number")
