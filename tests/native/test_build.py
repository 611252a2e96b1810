from __future__ import annotations

import ctypes
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from driftline import native
from driftline.native.build import SOURCES, BuildError, build, cache_directory, find_compiler, fingerprint

SHOW = """
import torch
from driftline import native
from driftline.learners.draws import Draws
print(native.available(), native.problem())
print(Draws(1, "test").normal(0, 3).tolist())
"""


def python(code, **environment):
    """Run code in a fresh interpreter; return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def compiler():
    try:
        return find_compiler()
    except BuildError as error:
        pytest.skip(str(error))


def test_the_library_is_built_once_and_loads(compiler, tmp_path):
    path = build(compiler, tmp_path / "cache")
    before = path.stat().st_mtime_ns
    assert build(compiler, tmp_path / "cache") == path
    assert path.stat().st_mtime_ns == before
    assert list(path.parent.iterdir()) == [path]
    assert ctypes.CDLL(str(path)).philox_normal


def test_the_cache_is_the_users_own(compiler, tmp_path):
    folder = build(compiler, tmp_path / "cache").parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_name_changes_with_source_and_compiler(compiler, tmp_path, monkeypatch):
    before = fingerprint(compiler)
    assert fingerprint(compiler) == before
    assert fingerprint([*compiler, "-DOTHER"]) != before
    for source in SOURCES.glob("*.[ch]"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    monkeypatch.setattr("driftline.native.build.SOURCES", tmp_path)
    assert fingerprint(compiler) == before
    (tmp_path / "draws.c").write_bytes((tmp_path / "draws.c").read_bytes() + b"\n")
    assert fingerprint(compiler) != before


@pytest.mark.slow
def test_two_processes_building_at_once_both_succeed(compiler, tmp_path):
    code = "from driftline import native; print(native.available())"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in running] == ["True", "True"]
    (built,) = (tmp_path / "driftline" / "native").iterdir()
    assert built.name.startswith("driftline-")


def test_a_source_that_does_not_compile_is_named(compiler, tmp_path, monkeypatch):
    (tmp_path / "broken.c").write_text("int broken( {")
    monkeypatch.setattr("driftline.native.build.SOURCES", tmp_path)
    with pytest.raises(BuildError, match="(?s)failed.*broken.c"):
        build(compiler, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_cc_names_the_compiler_with_its_options(compiler, monkeypatch):
    monkeypatch.setenv("CC", f"{compiler[0]} -pipe")
    assert find_compiler() == [compiler[0], "-pipe"]
    monkeypatch.setenv("CC", "no-such-compiler")
    assert find_compiler()[0] != "no-such-compiler"


def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "driftline" / "native"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/do/not/count")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory() == Path("/home/somebody/.cache/driftline/native")


def test_importing_builds_nothing(tmp_path):
    python("import driftline.learners.gradient, driftline.learners.draws", XDG_CACHE_HOME=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_switch_turns_them_off_and_draws_stay_the_same(tmp_path):
    found, drawn = python(SHOW, DRIFTLINE_NATIVE="0")
    assert found == "False switched off by DRIFTLINE_NATIVE=0"
    _, others = python(SHOW)
    assert eval(drawn) == pytest.approx(eval(others), rel=1e-5)


def test_without_a_compiler_everything_works(tmp_path):
    found, drawn = python(SHOW, PATH=str(tmp_path), CC="", XDG_CACHE_HOME=str(tmp_path))
    assert found.startswith("False there is no C compiler")
    assert len(eval(drawn)) == 3


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_done_without(compiler, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    assert python(SHOW, XDG_CACHE_HOME=str(blocked))[0] == "True None"


@pytest.mark.slow
def test_a_damaged_library_is_built_anew(compiler, tmp_path):
    path = build(compiler, tmp_path / "driftline" / "native")
    path.write_bytes(b"damaged")
    assert python(SHOW, XDG_CACHE_HOME=str(tmp_path))[0] == "True None"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an option of this processor's compilers")
def test_processors_without_wide_vectors_draw_the_same(compiler, tmp_path):
    found, drawn = python(SHOW, CC=f"{compiler[0]} -mno-avx", XDG_CACHE_HOME=str(tmp_path))
    assert found == "True None"
    assert eval(drawn) == pytest.approx(eval(python(SHOW)[1]), rel=1e-5)


def test_the_sources_lie_in_the_package():
    names = {p.name for p in Path(native.__file__).parent.iterdir()}
    assert {"draws.c", "upgd.c", "sums.c", "philox.h", "upgd.h", "sums.h", "arithmetic.h"} <= names
