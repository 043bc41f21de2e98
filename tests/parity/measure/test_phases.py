"""Names of phases."""

from lucid_deploy.parity.measure import phases


def test_no_two_phases_have_one_name():
    """A plan tells them apart by it."""
    names = [value for name, value in vars(phases).items() if name.isupper()]
    for dtype in ("float32", "float64"):
        names += [phases.loading(dtype), phases.baseline(dtype), phases.inside_baseline(dtype)]
        names += [phases.schedules(dtype, "int8"), phases.candidate("onnxruntime", dtype)]
    names += [phases.rounded("int8"), phases.text("onnxruntime"), phases.recording("float32")]
    assert len(set(names)) == len(names)
