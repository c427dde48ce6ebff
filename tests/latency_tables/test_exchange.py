"""Tables from and for elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import search_spaces
from latency_tables import Amount, LatencyTable, open_device, profile
from latency_tables.exchange import import_frame, import_table, to_frame
from search_spaces import UserError
from search_spaces.layers import Conv, GlobalPool, Linear, MBConv

SPACE = search_spaces.build("small-mobilenet", width=0.25, resolution=[16, 20]).restrict(kernel=[3], depth=[1], expand=[2, 4])
SMALL = Amount(4, 3)


def simulated(space: search_spaces.SearchSpace = SPACE, out: Path | None = None) -> LatencyTable:
    return profile(space, open_device("simulated"), amount=SMALL, out=out)


# Sums that others computed from the published tables of a Samsung Note10, width 1.2 (min k3 e3 d2, k5 e4 d3, max k7 e6 d4).
NOTE10_MS = {
    160: (9.890, 20.033, 47.773),
    176: (11.721, 24.210, 58.038),
    192: (13.325, 27.836, 67.562),
    208: (15.834, 33.471, 81.192),
    224: (17.769, 37.806, 92.398),
}


@pytest.mark.parametrize("resolution", NOTE10_MS)
def test_published_tables_give_the_known_sums(shared_data: Path, resolution: int) -> None:
    space = search_spaces.build("ofa-mobilenet-v3", width=1.2, resolution=[resolution])
    table = import_table([shared_data / "ofa_note10_lut" / f"{resolution}_lookup_table.yaml"], space, name="note10")
    archs = [
        space.architecture(resolution=resolution, depth=[d] * 5, kernel=[k] * 20, expand=[e] * 20)
        for k, e, d in ((3, 3, 2), (5, 4, 3), (7, 6, 4))
    ]
    assert table.estimate(archs) == pytest.approx(NOTE10_MS[resolution], abs=6e-4)


def test_all_published_tables_together_cover_the_space(shared_data: Path, tmp_path: Path) -> None:
    space = search_spaces.build("ofa-mobilenet-v3", width=1.2, resolution=list(NOTE10_MS))
    paths = [shared_data / "ofa_note10_lut" / f"{resolution}_lookup_table.yaml" for resolution in NOTE10_MS]
    table = import_table(paths, space, name="note10")
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table
    for resolution, known in NOTE10_MS.items():
        arch = space.architecture(resolution=resolution, depth=[4] * 5, kernel=[7] * 20, expand=[6] * 20)
        assert table.estimate(arch) == pytest.approx(known[2], rel=0.05)  # a layer that two files have is averaged
    with pytest.raises(UserError, match="has no time for"):
        import_table(paths[:1], space, name="note10")


def proxyless_lines(space: search_spaces.SearchSpace) -> dict[str, float]:
    """A table in ProxylessNAS's form that gives every layer its MACs as a time."""
    lines = {}
    for layer in space.layers():
        (cin, h, w), (cout, oh, ow) = layer.in_shape, layer.out_shape
        maps = f"input:{h}x{w}x{cin}-output:{oh}x{ow}x{cout}"
        ms = 1e-6 * layer.macs
        if isinstance(layer, MBConv):
            ratio = layer.mid_channels // layer.in_channels
            key = f"expanded_conv-{maps}-expand:{ratio}-kernel:{layer.kernel}-stride:{layer.stride}"
            lines[f"{key}-idskip:{int(layer.shortcut)}"] = ms
        elif isinstance(layer, Conv):
            lines[f"{'Conv' if layer.kernel == 3 else 'Conv_1'}-{maps}"] = ms
        elif isinstance(layer, GlobalPool):
            lines[f"Logits-input:{h}x{w}x{cin}-output:1000"] = 1e-6 * layer.channels * 1000  # the classifier's
        else:
            assert isinstance(layer, Linear)
    return lines


def test_tables_in_the_form_of_proxylessnas(tmp_path: Path) -> None:
    space = search_spaces.build("ofa-proxyless", width=1.3, resolution=[160, 224])
    path = tmp_path / "mobile.yaml"
    path.write_text("".join(f"{key}: {{mean: {ms!r}, count: 3}}\n" for key, ms in proxyless_lines(space).items()))
    table = import_table([path], space, name="pixel1")
    archs = space.sample(20, seed=0)
    assert table.estimate(archs) == pytest.approx(1e-6 * space.macs(archs), rel=1e-9)
    table.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json") == table


def test_csv_goes_out_and_comes_back(tmp_path: Path) -> None:
    table, path = simulated(), tmp_path / "layers.csv"
    frame = to_frame(table)
    assert set(frame["layer"]) == set(table.entries)
    frame.to_csv(path, index=False)
    back = import_table([path], SPACE, name="copy")
    archs = SPACE.sample(20, seed=0)
    known = [sum(table.layer_ms(layer) for layer in SPACE.lower(arch)) for arch in archs]
    assert back.estimate(archs) == pytest.approx(known)
    assert back.device == "table://copy"
    assert back.quality is None
    assert import_frame(frame, SPACE, name="copy").estimate(archs) == pytest.approx(known)
    for wrong in (frame.drop(columns="ms"), frame.assign(ms=-1.0), frame.iloc[1:]):
        with pytest.raises(UserError):
            import_frame(wrong, SPACE, name="copy")


def test_layers_between_measured_sizes_go_out_too() -> None:
    space = search_spaces.build("small-mobilenet", width=0.25, resolution=[16, 20, 24])
    table = profile(space, open_device("simulated"), amount=Amount(networks=4, held_out=3, resolutions=2))
    assert table.interpolated
    frame = to_frame(table)
    assert set(frame["layer"]) == {*table.entries, *table.interpolated}
    assert set(frame.loc[frame["alone_ms"].isna(), "layer"]) == table.interpolated
    archs = table.space.sample(20, seed=0)
    plain = [sum(table.layer_ms(layer) for layer in table.space.lower(arch)) for arch in archs]
    assert import_frame(frame, table.space, name="copy").estimate(archs) == pytest.approx(plain)


@pytest.mark.parametrize(
    "content",
    ["layer,ms\nconv(,1\n", "a,b\n1,2\n", "layer,ms\nconv(size=1),x\n", "", "layer,ms\n{key},-1\n", "layer,ms\n{key},nan\n"],
)
def test_csv_that_makes_no_sense_is_one_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content.replace("{key}", f'"{SPACE.layers()[0].key}"'))
    with pytest.raises(UserError):
        import_table([path], SPACE, name="x")


@pytest.mark.parametrize(
    "content", ["", "- 1\n", "a: 3\n", "a: {mean: .nan}\n", "a: {mean: -1}\n", "a: [\n", "!!python/object:os.system {}\n"]
)
def test_yaml_that_makes_no_sense_is_one_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(UserError):
        import_table([path], SPACE, name="x")
    with pytest.raises(UserError):
        import_table([tmp_path / "none.yaml"], SPACE, name="x")


def test_merging_keeps_all_layers_and_refuses_other_machines() -> None:
    whole = simulated()
    parts = [simulated(SPACE.restrict(resolution=[size])) for size in (16, 20)]
    with pytest.raises(UserError, match="one space, or"):
        parts[0].merged(parts[1])
    both = parts[0].merged(whole)
    assert set(both.entries) == set(whole.entries)
    assert len(both.networks) >= len(whole.networks)
    assert both.space == whole.space
    archs = SPACE.sample(20, seed=0)
    assert both.estimate(archs) == pytest.approx(whole.estimate(archs), rel=0.02)
    other = replace(whole, fingerprint={**whole.fingerprint, "governor": "powersave"})
    with pytest.raises(UserError, match="governor"):
        whole.merged(other)


def test_the_simulated_device_has_the_same_table_every_time() -> None:
    first, second = simulated(), simulated()
    assert first == second
    assert first.quality is not None
    assert first.quality.noise.median == 0
    assert np.isfinite(first.estimate(SPACE.sample(5, seed=0))).all()
