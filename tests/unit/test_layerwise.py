"""Scores of transformer blocks, walks down their orders, and runs on language models that were saved and loaded by path."""

import copy
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import workbench
from torch import nn
from workbench.errors import InputError, MissingDependencyError, WorkbenchError
from workbench.subjects import load_model, load_state, model_state
from workbench.subjects.language_networks import SmallGPT
from workbench.subjects.text_files import python_source

from workbench_quantization.allocator import allocate_walk
from workbench_quantization.language_models import (
    ResidualBlock,
    Text,
    find_residual_blocks,
    mean_divergence,
    predict_text,
    residual_cosines,
    skipped,
)
from workbench_quantization.layerwise_report import correlation
from workbench_quantization.layerwise_scores import (
    knee,
    layer_input_modification,
    rank,
    standard_scores,
    steps_along,
    z_score_distribution,
)
from workbench_quantization.stored_layers import stored_layers

LENGTH = 32


def text(count=6, length=12, vocabulary=16, seed=0):
    ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))
    return Text(ids, np.arange(count))


# ------------------------------------------------------------------------------------------------------------------ scores


class Turn(nn.Module):
    """A block that turns the stream by a known angle and stretches it; takes and returns what blocks of transformers do."""

    def __init__(self, angle, style="plain"):
        super().__init__()
        self.angle, self.style = angle, style

    def forward(self, hidden_states):
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        turned = 3.0 * hidden_states @ torch.tensor([[cos, sin], [-sin, cos]], dtype=hidden_states.dtype)
        return (turned, None) if self.style == "tuple" else turned


class Stream(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.embedding = nn.Embedding(16, 2)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, token_id):
        hidden = self.embedding(token_id)
        for block in self.blocks:
            answer = block(hidden_states=hidden)
            hidden = answer[0] if isinstance(answer, tuple) else answer
        return hidden


def test_lim_is_minus_the_cosine_of_the_turn():
    angles = (0.0, 0.3, 1.2, np.pi)
    model = Stream(
        *(Turn(angle, style) for angle, style in zip(angles, ("plain", "tuple", "tuple", "plain"), strict=True))
    )
    cosine = torch.cat(list(residual_cosines(model, find_residual_blocks(model), text(), 4, None)), dim=1)
    assert cosine.dtype == torch.float64
    lim = layer_input_modification(cosine).mean(1)
    np.testing.assert_allclose(lim, [-np.cos(angle) for angle in angles], atol=1e-6)
    assert rank(lim.numpy()).tolist() == [0, 1, 2, 3]  # a block that changes nothing is least important


def test_lim_counts_tokens_alike_however_large_they_are():
    before = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    after = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(1))
    huge = torch.ones(5)
    huge[0] = 1e4  # what a first token often looks like
    plain = F.cosine_similarity(before, after, dim=3)
    scaled = F.cosine_similarity(before * huge[:, None], after * 7 * huge[:, None], dim=3)
    torch.testing.assert_close(layer_input_modification(plain), layer_input_modification(scaled), atol=1e-6, rtol=0)
    rest = -plain[0, 0, 1:].double().mean()
    assert layer_input_modification(plain, skip_first_token=True)[0, 0] == pytest.approx(float(rest))


def test_a_part_of_a_block_is_no_residual_block():
    model = SmallGPT(16, blocks=2, width=8, heads=2, context=12)
    part = [ResidualBlock("blocks.0.expand", model.blocks[0].expand)]
    with pytest.raises(InputError, match="shape they take"):
        list(residual_cosines(model, part, text(), 4, None))


def test_zd_is_the_tail_of_the_distribution():
    normal = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    z = standard_scores(normal)
    assert z_score_distribution(z) == pytest.approx(0.158655, abs=0.002)
    assert z_score_distribution(z, two_sided=True) == pytest.approx(0.317311, abs=0.003)
    assert z_score_distribution(z, 2.0) == pytest.approx(0.022750, abs=0.001)
    skewed = standard_scores(-(torch.arange(1_000_000, dtype=torch.float64) + 0.5).div(1_000_000).log())
    assert z_score_distribution(skewed) == pytest.approx(np.exp(-2), abs=0.002)  # P(x > mean + std) of an exponential
    assert z_score_distribution(skewed, two_sided=True) == pytest.approx(
        np.exp(-2), abs=0.002
    )  # nothing below mean - std
    assert z_score_distribution(-skewed) < 1e-4  # the lowest z of an exponential is -1


@pytest.mark.parametrize("factor", [1e-3, 5.0])
def test_zd_does_not_see_the_scale_of_weights(factor):
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(2)) ** 3
    assert z_score_distribution(standard_scores(factor * weight)) == z_score_distribution(standard_scores(weight))


def test_a_block_of_equal_weights_has_no_outliers():
    assert z_score_distribution(standard_scores(torch.full((4, 4), 0.3))) == 0.0


# ------------------------------------------------------------------------------------------------------------------- walks


def test_a_walk_lowers_one_block_at_a_time():
    assert steps_along(np.array([2, 0, 1]), (4, 2)).tolist() == [[4, 4, 4], [4, 4, 2], [2, 4, 2], [2, 2, 2]]
    ladder = steps_along(np.array([1, 0]), (8, 4, 2))
    assert ladder.tolist() == [[8, 8], [8, 4], [4, 4], [4, 2], [2, 2]]


@pytest.mark.parametrize("widths", [(4, 2), (8, 4, 2)])
def test_the_walk_is_that_of_the_shared_allocator(widths):
    order, ascending = np.array([3, 0, 2, 1]), np.array(widths[::-1])
    cost = np.full((4, 1), 100.0) * ascending
    for bits in steps_along(order, widths):
        assert ascending[allocate_walk(order.tolist(), cost, 100.0 * bits.sum())].tolist() == bits.tolist()


def test_the_knee_is_the_last_point_before_the_first_bad_one():
    assert knee(np.array([10.0, 10.5, 11.0, 11.1, 10.0])) == 2
    assert knee(np.array([10.0, 10.0, 10.0])) == 2
    assert knee(np.array([10.0, np.inf, 10.0])) == 0


def test_of_equally_important_blocks_the_later_one_is_lowered_first():
    assert rank(np.array([1.0, 0.0, 1.0, 0.0])).tolist() == [3, 1, 2, 0]


# ------------------------------------------------------------------------------------------------------------------ models


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary():
    model = SmallGPT(16, blocks=1, width=8, heads=2, context=12)
    nn.init.zeros_(model.embedding.weight)  # tied: all logits are 0
    found = predict_text(model, text(), 4, None)
    assert found.perplexity == pytest.approx(16.0)
    assert found.loss.shape == (6,)


def test_divergence_is_that_of_torch():
    full, other = (torch.randn(9, 7, generator=torch.Generator().manual_seed(seed)).log_softmax(1) for seed in (0, 1))
    expected = F.kl_div(other.double(), full.double(), reduction="batchmean", log_target=True)
    assert mean_divergence(full, other) == pytest.approx(float(expected), rel=1e-6)
    assert mean_divergence(full, full) == 0.0


def test_blocks_are_found_named_or_refused():
    model = SmallGPT(16, blocks=3, width=8, heads=2, context=12)
    assert [block.name for block in find_residual_blocks(model)] == ["blocks.0", "blocks.1", "blocks.2"]
    assert [block.name for block in find_residual_blocks(model, ("blocks.2", "blocks.0"))] == ["blocks.2", "blocks.0"]
    other = nn.Sequential()
    other.add_module("stack", model.blocks)
    with pytest.raises(InputError, match=r"blocks=\('stack',\)"):
        find_residual_blocks(other)
    assert len(find_residual_blocks(other, ("stack",))) == 3
    with pytest.raises(InputError, match="nowhere"):
        find_residual_blocks(model, ("nowhere",))


def configuration(transformers, kind, blocks, width=32):
    common = {"vocab_size": 256, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        return transformers.GPT2Config(n_positions=LENGTH, n_embd=width, n_layer=blocks, n_head=4, **common)
    return transformers.LlamaConfig(
        hidden_size=width, intermediate_size=48, num_hidden_layers=blocks, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=LENGTH, tie_word_embeddings=False, **common,
    )  # fmt: skip


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", exc_type=ImportError)


@pytest.fixture(scope="module")
def saved(transformers, tmp_path_factory):
    """Folders of a GPT-2, trained for a moment on the source of Python, and of a Llama with initial weights."""
    folders = {}
    for kind, library_class in (("gpt2", transformers.GPT2LMHeadModel), ("llama", transformers.LlamaForCausalLM)):
        torch.manual_seed(0)
        model = library_class(configuration(transformers, kind, blocks=3 if kind == "gpt2" else 2))
        if kind == "gpt2":
            train(model, python_source("train", LENGTH)["token_id"].values, steps=60, batch=16, rate=1e-2)
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
    return folders


def train(model, ids, *, steps, batch, rate, seed=0):
    """Adam with a cosine, on windows drawn at random."""
    optimiser, ids = torch.optim.Adam(model.parameters(), lr=rate), torch.from_numpy(ids)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(steps):
        drawn = ids[torch.randint(len(ids), (batch,), generator=generator)]
        logits = model(input_ids=drawn, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), drawn[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_saved_model_is_loaded_by_its_folder_and_comes_back_from_its_state(transformers, saved, kind):
    model = load_model(f"transformers:{saved[kind]}", factories={})
    ids = text(2, LENGTH, 256).token_id
    original = transformers.AutoModelForCausalLM.from_pretrained(saved[kind]).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), original(input_ids=ids).logits, rtol=0, atol=0)
        assert torch.equal(load_state(*model_state(model), factories={})(ids), model(ids))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_stream_and_perplexity_are_those_that_transformers_reports(transformers, saved, kind):
    model = load_model(f"transformers:{saved[kind]}", factories={})
    original = transformers.AutoModelForCausalLM.from_pretrained(saved[kind]).eval()
    some = text(4, LENGTH, 256)
    with torch.no_grad():
        answer = original(input_ids=some.token_id, labels=some.token_id, output_hidden_states=True)
    assert predict_text(model, some, 3, None).perplexity == pytest.approx(float(answer.loss.exp()), rel=1e-5)
    cosine = torch.cat(list(residual_cosines(model, find_residual_blocks(model), some, 4, None)), dim=1)
    # The last hidden state is reported behind the last norm, so the last block has no counterpart.
    for place in range(len(answer.hidden_states) - 2):
        before, after = answer.hidden_states[place].double(), answer.hidden_states[place + 1].double()
        torch.testing.assert_close(cosine[place], F.cosine_similarity(before, after, dim=2), rtol=1e-5, atol=1e-6)


def test_skipping_blocks_is_cutting_them_out(transformers, saved):
    model = load_model(f"transformers:{saved['gpt2']}", factories={})
    cut = transformers.AutoModelForCausalLM.from_pretrained(saved["gpt2"]).eval()
    del cut.transformer.h[1]
    some = text(2, LENGTH, 256)
    with skipped(find_residual_blocks(model)[1:2]), torch.no_grad():
        torch.testing.assert_close(model(some.token_id), cut(input_ids=some.token_id, use_cache=False).logits)


def test_code_of_strangers_is_refused_and_a_missing_library_named(saved, monkeypatch):
    with pytest.raises(InputError, match="trust_remote_code"):
        load_model(f"transformers:{saved['gpt2']}(trust_remote_code=True)", factories={})
    for file in saved["llama"].glob("*.safetensors"):
        torch.save({}, file.with_name("pytorch_model.bin"))
        file.rename(file.with_suffix(".away"))
    with pytest.raises(InputError, match="safetensors"):
        load_model(f"transformers:{saved['llama']}", factories={})
    for file in saved["llama"].glob("*.away"):
        file.rename(file.with_suffix(".safetensors"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"vision-workbench\[transformers\]"):
        load_model("transformers:gpt2", factories={})


# -------------------------------------------------------------------------------------------------------------------- runs

INPUTS = {
    "data": python_source("train", LENGTH).isel(sample=slice(120)),
    "test": python_source("test", LENGTH).isel(sample=slice(30)),
}
SMALL = {"calibration_tokens": 1600, "divergence_tokens": 320, "group_size": 32, "random_orders": 3}
ENDS = SMALL | {"points": (), "orders": ("lim",), "random_orders": 2}
"""Nothing is measured along the orders but their ends."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return workbench.open(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(bench, saved):
    return bench.run("quantization.layerwise", model=f"transformers:{saved['gpt2']}", **INPUTS, **SMALL)


def test_every_order_begins_and_ends_at_the_uniform_widths_bit_for_bit(run):
    loss = run["loss"].values
    assert (loss[:, 0] == loss[:1, 0]).all()
    assert (loss[:, -1] == loss[:1, -1]).all()
    assert run["perplexity_uniform"].values.tolist() == run["perplexity"].values[0, [0, -1]].tolist()
    assert (run["block_bits"].values[:, 0] == 4).all()
    assert (run["block_bits"].values[:, -1] == 2).all()
    assert float(run["perplexity"][0, -1]) != float(run["perplexity"][0, 0])


def test_reversed_orders_are_the_orders_backwards(run):
    order = run["order"]
    assert order.sel(order_name="reversed lim").values.tolist() == order.sel(order_name="lim").values[::-1].tolist()
    lim, zd = run["lim"].values, run["zd"].values
    assert (np.diff(lim[order.sel(order_name="lim").values]) >= 0).all()  # low LIM is lowered first
    assert (np.diff(zd[order.sel(order_name="zd").values]) <= 0).all()  # high ZD is lowered first
    assert (np.diff(run["damage"].values[order.sel(order_name="measured").values]) >= 0).all()


def test_every_token_is_counted_once_and_every_weight_once(run):
    assert (run["lim_token"].sum("bin") == 1600).all()
    np.testing.assert_allclose(run["weight_z_hist"].sum("z_bin"), 1.0)
    assert run["parameter_count"].sum() == run["block_parameter_count"].sum() == 3 * 12 * 32 * 32
    middle = run["lim"].values
    assert ((middle >= -1) & (middle <= 1)).all()


def test_only_matrices_inside_blocks_are_quantised_and_the_rest_is_listed(run):
    names = run["bits"]["layer"].values.tolist()
    assert all(".transformer.h." in name for name in names)
    assert len(names) == 12
    reasons = dict(
        zip(run["unquantised_reason"]["parameter"].values.tolist(), run["unquantised_reason"].values, strict=True)
    )
    assert any("wte" in name for name in reasons)
    assert any("lm_head" in name and "shared" in reasons[name] for name in reasons)


def test_the_stored_model_computes_with_its_integers_and_can_be_judged_again(bench, run, saved):
    model = run.model()
    layers = stored_layers(run, model)  # raises where integers and weights differ
    assert [layer.bits for layer in layers] == run["bits"].values.tolist()
    assert sorted(set(run["bits"].values.tolist())) == [2, 4]
    again = bench.run("quantization.layerwise", model=run, **INPUTS, **ENDS)
    assert float(again["perplexity_full_precision"]) == pytest.approx(float(run["perplexity_stored"]), rel=1e-6)
    judged = bench.run(
        "quantization.layerwise",
        model=f"transformers:{saved['gpt2']}",
        **INPUTS,
        **ENDS,
        average_bits=4.0,
        bits=run["bits"],
    )
    assert judged["bits"].values.tolist() == run["bits"].values.tolist()
    assert float(judged["perplexity_stored"]) == float(run["perplexity_stored"])


def test_the_stored_widths_are_a_point_of_the_walk(run):
    by_block = {
        int(block): int(bits) for block, bits in zip(run["block_of_layer"].values, run["bits"].values, strict=True)
    }
    walked = run["block_bits"].sel(order_name="lim").values.tolist()
    place = walked.index([by_block[block] for block in range(3)])
    assert float(run["perplexity_stored"]) == float(run["perplexity"].sel(order_name="lim")[place])
    assert float(run["average_bits_stored"]) == float(run["average_bits"].sel(order_name="lim")[place])
    widths = np.array(walked[place])
    assert widths.mean() <= 3.0 < np.array(walked[place - 1]).mean()
    # one scale of 32 bits and one zero-point of the width for 32 inputs
    assert float(run["average_bits_stored"]) == pytest.approx(float((widths + (32 + widths) / 32).mean()))


def test_the_report_says_what_the_arrays_say(run):
    found = run.metrics
    assert found["perplexity"] == pytest.approx(float(run["perplexity_stored"]))
    assert found["perplexity_uniform_low"] == float(run["perplexity_uniform"][-1])
    loss = run["loss"].mean("sample").values[:, 1:-1].mean(1)
    assert found["loss_saved_over_random"] == pytest.approx(loss[-3:].mean() - loss[0])
    places = [np.argsort(np.argsort(values)) for values in (run["lim"].values, -run["zd"].values)]
    assert found["rank_correlation_scores"] == pytest.approx(np.corrcoef(*places)[0, 1])
    assert np.isnan(correlation(np.ones(3), np.arange(3)))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_gptq_predicts_better_than_rounding_where_bits_are_few(bench, saved, kind):
    options = {**INPUTS, **ENDS, "average_bits": 2.0}
    runs = {
        backend: bench.run("quantization.layerwise", model=f"transformers:{saved[kind]}", backend=backend, **options)
        for backend in ("rtn", "gptq")
    }
    assert [layer.bits for layer in stored_layers(runs["gptq"], runs["gptq"].model())] == [2] * runs["gptq"][
        "bits"
    ].size
    assert runs["gptq"]["bits"].values.tolist() == runs["rtn"]["bits"].values.tolist()
    assert "loss_saved_over_random" not in runs["rtn"].metrics
    # The divergence from the model as it came: the loss of a net trained for a moment may fall by chance.
    kl = {name: float(found["logit_kl"].sel(order_name="lim")[-1]) for name, found in runs.items()}
    assert kl["gptq"] < kl["rtn"]
    if kind == "llama":
        reasons = runs["rtn"]["unquantised_reason"]
        assert str(reasons.sel(parameter="language_model.lm_head.weight").values) == "outside the residual blocks"


def test_the_stored_damping_is_of_matrices_that_were_solved(bench, saved):
    """Not of one that the given table leaves in full precision, though the walk has solved it before."""
    options = {**INPUTS, **ENDS, "average_bits": 2.0, "backend": "gptq", "model": f"transformers:{saved['llama']}"}
    walked = bench.run("quantization.layerwise", **options)
    assert (walked["damping_stored"] >= 0.01).all()
    table = walked["bits"].copy(data=walked["bits"].values)
    table[0] = 32
    damping = bench.run("quantization.layerwise", **options, bits=table)["damping_stored"].values
    assert np.isnan(damping).tolist() == [True] + [False] * (len(damping) - 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": INPUTS["data"].isel(sample=slice(50))}, "not calibrated on"),
        ({"data": text(50, 64, 256).token_id, "test": None}, "accepts token ids"),
        ({"points": (1, 99)}, "at most 3 steps"),
        ({"blocks": ("nowhere",)}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_any_work(bench, saved, changes, message):
    given = {key: value for key, value in ({**INPUTS, **SMALL} | changes).items() if value is not None}
    with pytest.raises(WorkbenchError, match=message):
        bench.run("quantization.layerwise", model=f"transformers:{saved['gpt2']}", **given)


def test_token_ids_beyond_the_vocabulary_are_refused(bench):
    model = SmallGPT(16, blocks=2, width=8, heads=2, context=12)
    with pytest.raises(WorkbenchError, match="below 16"):
        bench.run("quantization.layerwise", model=model, data={"token_id": text(20, vocabulary=17).token_id})


def test_any_module_with_blocks_will_do(bench):
    torch.manual_seed(0)
    model = SmallGPT(16, blocks=3, width=8, heads=2, context=12)
    before = copy.deepcopy(model.state_dict())
    found = bench.run(
        "quantization.layerwise",
        model=model,
        data={"token_id": text(20).token_id},
        widths=(8, 4, 2),
        score="zd",
        group_size=8,
    )
    assert found["perplexity"].sizes["point"] == 7
    assert found["perplexity_uniform"].sizes == {"width": 3}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
