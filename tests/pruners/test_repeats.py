"""HoliTom: its windows, what is merged, and what comes back where much is kept."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from golden_support import Served, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

import vtc
from vtc.pruners.holitom import windows_of
from vtc.pruners.layout import Grid, Layout
from vtc.pruners.signals import EncoderAttention

pytestmark = pytest.mark.usefixtures("no_grad")


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 999))
@settings(max_examples=40)
def test_windows_save_as_much_as_any_cuts(frames, places, seed):
    alike = torch.rand(1, frames, places, generator=torch.Generator().manual_seed(seed)) < 0.7
    alike[:, 0] = False

    def saved(start, stop):
        return int(alike[0, start + 1 : stop].all(0).sum()) * (stop - start - 1)

    best = 0
    for cuts in product([False, True], repeat=frames - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), frames]
        best = max(best, sum(saved(*edge) for edge in pairwise(edges)))
    found = windows_of(alike)
    begins = found.begin[0].tolist()
    edges = [*sorted(set(begins)), frames]
    assert begins == [start for start, stop in pairwise(edges) for _ in range(start, stop)]
    assert sum(saved(*edge) for edge in pairwise(edges)) == best
    for start, stop in pairwise(edges):
        expected = alike[0, start + 1 : stop].all(0) & (stop - start > 1)
        assert all(torch.equal(found.still[0, t], expected) for t in range(start, stop))


def still_video(frames=3, places=6, keep=4, **given):
    """All frames are the same picture but for small noise, so that it is one window and every place repeats."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, places, 8, generator=g) + 0.01 * torch.randn(frames, places, 8, generator=g)
    source = Served({EncoderAttention(): torch.rand(1, 2, frames * places, generator=g)})
    layout = Layout((Grid(1, places, "frame"),) * frames)
    tokens = tokens_of(x.flatten(0, 1).numpy(), keep, source, [layout])
    return vtc.parse("holitom", keep=keep, **given)[0].select(tokens, keep), x


def test_what_repeats_is_its_mean_over_the_window_at_the_first_frame():
    found, x = still_video(keep=6)
    assert found.index[0].tolist() == list(range(6))
    torch.testing.assert_close(found.features[0], x.mean(0))


def test_the_other_means_join_their_nearest_centre():
    found, x = still_video(keep=2, beta=0.25)
    means, centres = x.mean(0), found.index[0]
    assert centres.max() < 6
    owner = torch.cdist(means, means[centres]).argmin(1)
    for i, centre in enumerate(centres.tolist()):
        others = [j for j in range(6) if owner[j] == i and j not in centres.tolist()]
        expected = 0.25 * means[centre] + 0.75 * means[others].mean(0) if others else means[centre]
        torch.testing.assert_close(found.features[0, i], expected)


def test_where_more_is_kept_than_moves_repeated_tokens_come_back():
    found, x = still_video(keep=9)
    kept = found.index[0].tolist()
    assert kept[:6] == list(range(6))
    assert len(set(kept)) == 9
    torch.testing.assert_close(found.features[0, 6:], x.flatten(0, 1)[kept[6:]])


@pytest.mark.parametrize(
    "spec",
    [
        "holitom(tau=1.5)",
        "holitom(beta=-0.1)",
        "holitom(neighbours=0)",
    ],
)
def test_what_is_out_of_range_is_told(spec):
    with pytest.raises(ValueError, match="is out of range"):
        vtc.parse(spec)
