"""The shell scripts of a package: they build engines and compare outputs with NVIDIA's tools, without lucid-deploy."""

from __future__ import annotations

import shlex
from importlib.resources import files

from lucid_deploy.artifact import STAGES
from lucid_deploy.packaging.tensorrt.recorded import CASES
from lucid_deploy.runtimes.tensorrt.limits import Range

Profiles = dict[str, dict[str, Range]]  # by stage, then by input: smallest, optimal and largest shape
_KINDS = ("min", "opt", "max")
_TYPING = (
    "--strongly-typed",
    "--trt-config-postprocess-script",
    "no_tf32.py",
)  # TF32 rounds float32 operands to 11 significant bits
_START = """#!/bin/sh
# {what}
set -eu
cd "$(dirname "$0")"
"""
_RTX = """# TensorRT-RTX's parser opens libtensorrt_rtx.so for plugins; in its wheel the name ends with a version.
if [ "${POLYGRAPHY_USE_TENSORRT_RTX:-0}" != 0 ]; then
	found=$("$PYTHON" -c 'import sys
try:
	import tensorrt_rtx_libs as libs
except ImportError as error:
	sys.exit(str(error) + ". TensorRT-RTX is needed. Run: pip install \\"tensorrt-rtx-cu13>=1.7\\"")
print(libs.__path__[0])')
	mkdir -p .libraries
	ln -sf "$found"/libtensorrt_rtx.so.* .libraries/libtensorrt_rtx.so
	LD_LIBRARY_PATH=$PWD/.libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
	export LD_LIBRARY_PATH
fi
"""


def resource(name: str) -> str:
    """Return the text of a file in ``resources``; its name ends in ``.in``: it is not a module of ours."""
    return (files("lucid_deploy.packaging.tensorrt") / "resources" / f"{name}.in").read_text(encoding="utf-8")


def trtexec_script(profiles: Profiles, plugin: str | None, decomposable: bool) -> str:
    """Return ``build.sh``, which builds both engines with trtexec."""
    lines = [_START.format(what="Builds both engines with trtexec, on the GPU that is to run them.").rstrip()]
    lines += [
        "# TRTEXEC names another trtexec. TRTEXEC_OPTIONS replaces the default; TensorRT 11 is always strongly typed.",
        ': "${TRTEXEC:=trtexec}"',
        ': "${TRTEXEC_OPTIONS=--stronglyTyped --noTF32}"',
        'if ! command -v "$TRTEXEC" >/dev/null; then',
        '\techo "There is no $TRTEXEC. It comes with TensorRT; put it on the path, or name it in TRTEXEC." >&2',
        "\texit 2",
        "fi",
    ]
    for stage in STAGES:
        words = [f"--onnx={stage}.onnx", f"--saveEngine={stage}.engine", "--skipInference"]
        words += ["--profilingVerbosity=detailed"]
        if plugin is not None:
            words.append(f"--dynamicPlugins=./{plugin}")
        if decomposable:
            words.append("--decomposableAttentions=*")
        for place, kind in enumerate(_KINDS):
            shapes = (f"{name}:{'x'.join(map(str, of[place]))}" for name, of in profiles[stage].items())
            words.append(f"--{kind}Shapes={','.join(shapes)}")
        lines.append(_command('"$TRTEXEC"', words, tail='$TRTEXEC_OPTIONS "$@"'))
    return "\n".join(lines) + "\n"


def polygraphy_script(profiles: Profiles) -> str:
    """Return ``build_polygraphy.sh``, which builds both engines with Polygraphy."""
    lines = [_START.format(what="Builds both engines with Polygraphy; with TensorRT-RTX this needs no GPU.").rstrip()]
    lines += [': "${PYTHON:=python3}"', _RTX.rstrip()]
    for stage in STAGES:
        words = [
            "convert",
            f"{stage}.onnx",
            "--convert-to",
            "trt",
            "-o",
            f"{stage}.engine",
            *shape_words(profiles[stage]),
        ]
        words += ["--profiling-verbosity", "detailed", *_TYPING]
        lines.append(_command('"$PYTHON" run_polygraphy.py', words, tail='"$@"'))
    return "\n".join(lines) + "\n"


def compare_script(profiles: Profiles, tolerances: dict[str, dict[str, float]]) -> str:
    """Return ``compare.sh``, which compares onnxruntime, or the runtimes in its arguments, with the golden outputs."""
    what = (
        "Compares with the golden outputs: ./compare.sh --onnxrt; on a machine with a GPU ./compare.sh --trt --onnxrt"
    )
    lines = [
        _START.format(what=what).rstrip(),
        ': "${PYTHON:=python3}"',
        _RTX.rstrip(),
        "[ $# -gt 0 ] || set -- --onnxrt",
    ]
    for case, stage in CASES.items():
        words = ["run", f"{stage}.functions.onnx", *shape_words(profiles[stage]), *_TYPING]
        words += ["--load-inputs", f"{case}_inputs.json", "--load-outputs", f"{case}_outputs.json"]
        words += ["--rtol", "0", "--atol", *(f"{name}:{allowed:.3g}" for name, allowed in tolerances[case].items())]
        lines.append(_command('"$PYTHON" run_polygraphy.py', words, tail='"$@"'))
    return "\n".join(lines) + "\n"


def shape_words(profile: dict[str, Range]) -> list[str]:
    """Return Polygraphy's options for a stage's shapes."""
    words = []
    for place, kind in enumerate(_KINDS):
        words.append(f"--trt-{kind}-shapes")
        words += [f"{name}:[{','.join(map(str, of[place]))}]" for name, of in profile.items()]
    return words


def _command(program: str, words: list[str], tail: str) -> str:
    """Return a command over several lines; words are quoted where the shell would change them."""
    return " \\\n\t".join([program, *map(shlex.quote, words), tail])
