from __future__ import annotations

import pytest
import torch

import driftline.stream.reader as reading
from driftline.errors import InputError
from driftline.stream import Dataset, Segment, Stream, concatenate, interleave
from driftline.stream.reader import Reader
from tests.stream.players import add_draw, numbered

WEIGHTS = torch.randn(37, 37, generator=torch.Generator().manual_seed(5))


def project(x):
    """A matrix product, whose last bits depend on how many samples are multiplied together."""
    return x @ WEIGHTS.to(x.device)


def pixels(samples=200, seed=0):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (samples, 37), generator=rng, dtype=torch.uint8)
    return Segment.of(Dataset(x, torch.arange(samples) % 3))


def plain(seed=0):
    return Stream([pixels(), pixels(70, 1)], seed)


def transformed(seed=0):
    return Stream([pixels().transform(project), pixels(70, 1).transform(project)], seed)


def random(seed=0):
    return Stream([pixels().transform(add_draw, random=True), pixels(70, 1).transform(add_draw, random=True)], seed)


def mixed(seed=0):
    """Every sample of a segment may have its own recipe."""
    whole = pixels()
    parts = [
        whole.classes(0),
        whole.classes(1).transform(project).relabel([2, 0, 1]),
        whole.classes(2).with_labels(torch.zeros(200, dtype=torch.long)).delay_labels(3),
    ]
    return Stream([interleave(*parts), concatenate(*reversed(parts)).shuffle(torch.Generator())], seed)


def mixed_random(seed=0):
    whole = pixels()
    parts = [
        whole.classes(0).transform(add_draw, random=True),
        whole.classes(1).transform(project).transform(add_draw, random=True).transform(add_draw, random=True),
        whole.classes(2),
    ]
    return Stream([interleave(*parts), whole, interleave(*reversed(parts))], seed)


STREAMS = [plain, transformed, random, mixed, mixed_random]


def same(one, other):
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def joined(batches):
    batches = list(batches)
    return torch.cat([b.x for b in batches]), torch.cat([b.y for b in batches])


@pytest.fixture(params=STREAMS, ids=lambda make: make.__name__)
def stream(request):
    return request.param()


@pytest.mark.parametrize("chunk", [1, 5, 64, 100, 1024])
def test_a_sample_is_the_same_tensor_whatever_the_batch_size_and_chunk(stream, chunk, monkeypatch):
    whole = stream.read(0, len(stream))
    monkeypatch.setattr(reading, "CHUNK_SAMPLES", chunk)
    for batch_size in (1, 7, 64, 300):
        assert same(joined(stream.batches(batch_size)), whole), batch_size


@pytest.mark.parametrize("chunk", [5, 1024])
def test_a_sample_is_the_same_tensor_wherever_reading_begins(stream, chunk, monkeypatch):
    x, y = stream.read(0, len(stream))
    monkeypatch.setattr(reading, "CHUNK_SAMPLES", chunk)
    for start in (0, 1, 63, 199, 200, 201, len(stream) - 1):
        assert same(joined(stream.batches(7, start)), (x[start:], y[start:])), start


def test_a_sample_is_the_same_tensor_in_any_window_of_the_stream(stream):
    x, y = stream.read(0, len(stream))
    for start, stop in ((0, 2), (1, 66), (190, 210), (199, 201), (205, len(stream))):
        part = stream[start:stop]
        assert same(part.read(0, len(part)), (x[start:stop], y[start:stop]))
        assert same(joined(part.batches(4)), (x[start:stop], y[start:stop]))
        assert same(joined(part[1:].batches(3)), (x[start + 1 : stop], y[start + 1 : stop]))
        assert same(joined(part.batches(3, len(part) - 1)), (x[stop - 1 : stop], y[stop - 1 : stop]))


def test_any_ranges_may_be_read_in_any_order_with_one_reader(stream, monkeypatch):
    x, y = stream.read(0, len(stream))
    monkeypatch.setattr(reading, "CHUNK_SAMPLES", 16)
    reader = stream.reader(grid=4)
    draw = torch.Generator().manual_seed(1)
    for _ in range(60):
        start, stop = sorted(torch.randint(len(stream) + 1, (2,), generator=draw).tolist())
        if start < stop:
            assert same(reader.read(start, stop), (x[start:stop], y[start:stop]))


@pytest.mark.parametrize("make", [random, mixed_random])
def test_random_transforms_depend_on_the_seed_and_differ_between_samples(make):
    one, same_seed, other = (make(s).read(0, 200)[0] for s in (1, 1, 2))
    assert torch.equal(one, same_seed)
    assert not torch.equal(one, other)
    draws = Stream([Segment.of(Dataset(torch.zeros(300, 2))).transform(add_draw, random=True)]).read(0, 300)[0]
    assert len(torch.unique(draws)) > 590  # all draws differ, but for a rare collision in float32


def test_two_segments_and_two_transforms_have_draws_of_their_own():
    zeros = Segment.of(Dataset(torch.zeros(50, 2))).transform(add_draw, random=True)
    once = Stream([zeros, zeros]).read(0, 100)[0]
    assert not torch.equal(once[:50], once[50:])
    twice = Stream([zeros.transform(add_draw, random=True)]).read(0, 50)[0]
    assert not torch.equal(twice, 2 * once[:50])


def test_a_transform_in_place_leaves_the_dataset_as_it_was():
    data = numbered(20)
    before = data.x.clone()
    stream = Stream([Segment.of(data).transform(torch.Tensor.neg_)])
    assert torch.equal(stream.read(0, 20)[0], -before)
    assert torch.equal(data.x, before)


def test_chunks_hold_whole_batches_and_at_most_so_many_bytes(monkeypatch):
    taken = []

    def note(x):
        taken.append(len(x))
        return x

    monkeypatch.setattr(reading, "CHUNK_BYTES", 4 * 37 * 50)
    stream = Stream([pixels().transform(note)])
    reader = stream.reader(grid=20)
    reader.read(0, 20)
    assert taken == [64]  # a chunk of 40 samples lies in one block
    reader.read(20, 40)
    assert taken == [64]
    reader.read(40, 60)
    assert taken == [64, 64, 64]


def test_truth_is_none_where_some_of_it_is_unknown():
    unlabelled = Segment.of(Dataset(torch.zeros(5, 2), None, list("abc")))
    stream = Stream([Segment.of(numbered(5)), unlabelled])
    assert stream.read(0, 5)[1].tolist() == [0, 1, 2, 0, 1]
    assert stream.read(3, 8)[1] is None
    assert stream.read(5, 8)[1] is None


def test_a_transform_that_gives_nan_is_named_with_the_sample():
    data = Segment.of(numbered(200))
    stream = Stream([data, data.transform(lambda x: torch.where(x == 150, float("nan"), x)).named("broken")])
    with pytest.raises(InputError, match=r"segment 'broken', sample 150 of it: NaN or Inf in x after its transforms"):
        list(stream.batches(10))


@pytest.mark.parametrize("change", [torch.Tensor.double, lambda x: x[:, :1]], ids=["dtype", "shape"])
def test_transforms_that_mix_forms_in_one_segment_are_named(change):
    data = Segment.of(numbered(20))
    stream = Stream([interleave(data.transform(change), data).named("both")])
    with pytest.raises(InputError, match=r"segment 'both' mixes samples of shape .* bring them to one form"):
        stream.read(0, 20)


# --- data that lives elsewhere is gathered in the background


@pytest.fixture
def from_afar(monkeypatch):
    """Readers that take the host for another device: 'cpu:0' is not 'cpu', but can be copied to."""
    begin = Reader.__init__

    def elsewhere(self, *given, **named):
        begin(self, *given, **named)
        self.device = torch.device("cpu", 0)

    monkeypatch.setattr(Reader, "__init__", elsewhere)
    monkeypatch.setattr(reading, "CHUNK_SAMPLES", 32)


def test_samples_gathered_in_the_background_are_the_same(stream, request):
    whole = stream.read(0, len(stream))
    request.getfixturevalue("from_afar")
    for start in (0, 65, 201):
        assert same(joined(stream.batches(7, start)), (whole[0][start:], whole[1][start:]))
    reader = stream.reader(grid=4)
    for start, stop in ((100, 140), (0, 9), (190, 230), (60, 61)):
        assert same(reader.read(start, stop), (whole[0][start:stop], whole[1][start:stop]))


@pytest.mark.usefixtures("from_afar")
def test_an_error_in_the_background_is_raised_where_its_samples_are_read():
    stream = Stream([Segment.of(numbered(100)).transform(lambda x: torch.where(x == 50, float("nan"), x))])
    reader = stream.reader(grid=8)
    reader.read(0, 32)
    with pytest.raises(InputError, match="sample 50 of it"):
        reader.read(32, 40)


@pytest.mark.cuda
@pytest.mark.cuda
@pytest.mark.parametrize("make", STREAMS)
def test_a_sample_is_the_same_tensor_on_a_cuda_device_whatever_the_batch_size(make):
    there = make().to("cuda")
    whole = there.read(0, len(there))
    assert whole[0].device.type == "cuda"
    assert same(joined(there.batches(7)), whole)
    assert same(joined(there[3:].batches(5, 70)), (whole[0][73:], whole[1][73:]))


@pytest.mark.cuda
@pytest.mark.cuda
@pytest.mark.parametrize("make", STREAMS)
def test_data_on_the_host_reaches_a_cuda_device_unchanged(make, monkeypatch):
    stream = make()
    x, y = stream.read(0, len(stream))
    monkeypatch.setattr(reading, "CHUNK_SAMPLES", 32)
    there = joined(stream.batches(7, device="cuda"))
    assert there[0].device.type == "cuda"
    assert torch.equal(there[0].cpu(), x)
    assert torch.equal(there[1].cpu(), y)


def test_a_segment_whose_transform_changes_the_form_of_samples_is_named():
    data = Segment.of(Dataset(torch.rand(8, 4), torch.arange(8) % 2))
    stream = Stream([data, data.transform(halve_width).named("narrow")])
    with pytest.raises(InputError, match=r"'narrow' has samples of shape \(2,\).*had \(4,\)"):
        list(stream.batches(4))


def halve_width(x):
    return x[:, :2]
