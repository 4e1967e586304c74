"""Files with published names: exact, whole, and read in the same way by programs that are not ours."""

import fakes
import pytest
import torch
from diffusers.loaders import FluxLoraLoaderMixin
from diffusers.loaders.lora_pipeline import Flux2LoraLoaderMixin, Flux3LoraLoaderMixin
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from safetensors.torch import load_file, save_file

from finetune import formats, registry
from finetune.errors import ModelError
from finetune.formats import changes, published
from finetune.formats.changes import Change

FAMILIES = registry.families().values()
LOADERS = {
    "FluxTransformer2DModel": FluxLoraLoaderMixin,
    "Flux2Transformer2DModel": Flux2LoraLoaderMixin,
    "Flux3Transformer2DModel": Flux3LoraLoaderMixin,
}
ALPHAS = {FluxLoraLoaderMixin: {"network_alphas": None}}  # the only loader that wants to be told there are none
# diffusers' converter of FLUX.1 counts the rows of what is stacked in the single blocks in these numbers.
ROWS_OF_FLUX1 = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
RANK = 3
READ_BY_DIFFUSERS = [
    (family, which)
    for family in FAMILIES
    for which in formats.Files._fields
    if (family.id, which) != ("flux1", "comfyui")
]
NAMES = {"block.qkv": ("q", "k", "v"), "block.out": ("o",)}
SHAPES = {"block.qkv": (14, 5), "block.out": (6, 6)}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.id)
def family(request):
    """Each family."""
    return request.param


def _lora(shapes, rank=RANK):
    draw = torch.Generator().manual_seed(len(shapes))
    state = {}
    for layer, (rows, columns) in shapes.items():
        state[f"{layer}.lora_A.weight"] = torch.randn(rank, columns, generator=draw)
        state[f"{layer}.lora_B.weight"] = torch.randn(rows, rank, generator=draw)
    return state


def _change(state, layer):
    return state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]


def _save(model, shapes, folder, **changes):
    about = formats.About(dataset_hash="abc", pictures=4, steps=10)
    return formats.save(_lora(shapes), folder, "x", fakes.config(**changes), model.base, about)


def _parts(family, model):
    names = family.published_names(model.base)
    modules = {part: model.transformer.get_submodule(part) for parts in names.values() for part in parts}
    return {part: (module.out_features, module.in_features) for part, module in modules.items()}


class Checkpoint(dict):
    """A published checkpoint that makes up the values which LoRA does not reach when they are asked for."""

    def pop(self, key):
        """As a dictionary does, but never in vain."""
        return super().pop(key) if key in self else torch.zeros(sum(ROWS_OF_FLUX1.values()), 1)


def test_published_checkpoint_with_its_file_is_the_network_with_the_other_file(family, tmp_path):
    """ComfyUI's way on the published weights, converted by diffusers, gives diffusers' way on its own weights."""
    model = family.tiny()
    kind = type(model.transformer).__name__
    convert = SINGLE_FILE_LOADABLE_CLASSES[kind]["checkpoint_mapping_fn"]
    sizes = _parts(family, model)
    if kind == "FluxTransformer2DModel":
        rows = {name: ROWS_OF_FLUX1.get(name.split(".", 2)[2], 0) for name in sizes if name.startswith("single_")}
        sizes |= {name: (count, sizes[name][1]) for name, count in rows.items() if count}
    files = _save(model, sizes, tmp_path)
    shapes = published.shapes(family.published_names(model.base), sizes)
    weights = {f"{layer}.weight": torch.randn(shape) for layer, shape in shapes.items()}

    changed = _as_comfyui_does(weights, load_file(files.comfyui))

    before, after = convert(Checkpoint(weights)), convert(Checkpoint(changed))
    lora = {key.removeprefix("transformer."): tensor for key, tensor in load_file(files.diffusers).items()}
    assert {f"{layer}.weight" for layer in sizes} <= set(after)
    for layer in sizes:
        expected = before[f"{layer}.weight"] + _change(lora, layer)
        assert torch.allclose(after[f"{layer}.weight"], expected, atol=1e-5), layer
        assert not torch.allclose(after[f"{layer}.weight"], before[f"{layer}.weight"], atol=1e-2), layer


def _as_comfyui_does(weights, lora):
    """Find a file's keys by the names of the modules, add B @ A, and let no key be left over."""
    prefix, changed, used = "diffusion_model.", dict(weights), set()
    for name, weight in weights.items():
        module = prefix + name.removesuffix(".weight")
        if f"{module}.lora_B.weight" in lora:
            used |= {f"{module}.lora_B.weight", f"{module}.lora_A.weight"}
            changed[name] = weight + _change(lora, module)
    assert used == set(lora), "ComfyUI would say: lora key not loaded"
    return changed


@pytest.mark.parametrize(("family", "which"), READ_BY_DIFFUSERS, ids=lambda value: getattr(value, "id", value))
def test_diffusers_loads_the_file_and_makes_the_same_change(family, which, tmp_path):
    """The family's own LoRA loader takes all layers into the network and scales them by 1."""
    model = family.tiny()
    sizes = _parts(family, model)
    path = getattr(_save(model, sizes, tmp_path), which)

    loaded = _loaded_by_diffusers(model.transformer, path)

    assert set(loaded) == set(sizes)
    for layer, module in loaded.items():
        assert torch.allclose(module.get_delta_weight("x"), _change(_lora(sizes), layer), atol=1e-5), layer


def test_diffusers_takes_no_published_name_of_flux1(tmp_path):
    """What the second file is to ComfyUI it is not to diffusers, where FLUX.1 needs the first."""
    family = registry.families()["flux1"]
    model = family.tiny()
    files = _save(model, _parts(family, model), tmp_path)

    assert not _loaded_by_diffusers(model.transformer, files.comfyui)


def _loaded_by_diffusers(transformer, path):
    """The layers of a network that have a LoRA once diffusers has loaded a file."""
    loader = LOADERS[type(transformer).__name__]
    state, metadata = loader.lora_state_dict(path, return_lora_metadata=True)
    loader.load_lora_into_transformer(
        state, transformer=transformer, adapter_name="x", metadata=metadata, **ALPHAS.get(loader, {})
    )
    return {name: module for name, module in transformer.named_modules() if hasattr(module, "lora_A")}


def test_stacked_layers_change_exactly_as_their_parts():
    """Parts of a layer lie in their rows, and outside them is nothing but zeros."""
    sizes = {"q": (4, 5), "k": (4, 5), "v": (6, 5), "o": (6, 6)}
    state = _lora(sizes)

    fused = published.fuse(state, NAMES)

    assert fused["block.qkv.lora_A.weight"].shape == (3 * RANK, 5)
    expected = torch.cat([_change(state, part) for part in "qkv"])
    assert torch.allclose(_change(fused, "block.qkv"), expected, atol=1e-6)
    assert torch.count_nonzero(fused["block.qkv.lora_B.weight"]) == RANK * (4 + 4 + 6)
    assert torch.equal(fused["block.out.lora_B.weight"], state["o.lora_B.weight"])
    assert published.shapes(NAMES, sizes) == SHAPES


def test_parts_with_the_very_same_inputs_keep_their_rank():
    """Where q, k and v share one A, it is kept once."""
    state = _lora({"q": (4, 5), "k": (4, 5), "v": (6, 5), "o": (6, 6)})
    state |= {f"{part}.lora_A.weight": state["q.lora_A.weight"].clone() for part in "kv"}

    fused = published.fuse(state, NAMES)

    assert fused["block.qkv.lora_A.weight"].shape == (RANK, 5)
    expected = torch.cat([_change(state, part) for part in "qkv"])
    assert torch.allclose(_change(fused, "block.qkv"), expected, atol=1e-6)


@pytest.mark.parametrize("layers", [{"q", "k", "o"}, {"q", "k", "v", "o", "extra"}])
def test_lora_of_other_layers_has_no_published_names(layers):
    """A part that is missing, or a layer without a name, is a mistake in the code."""
    with pytest.raises(ValueError, match="cover"):
        published.fuse(_lora(dict.fromkeys(layers, (4, 5))), NAMES)


def test_parts_of_different_inputs_do_not_stack():
    """Layers that are fused must read the same values."""
    with pytest.raises(ValueError, match="different inputs"):
        published.shapes(NAMES, {"q": (4, 5), "k": (4, 6), "v": (6, 5), "o": (6, 6)})


def _write(tensors, path):
    save_file({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()}, path)
    return path


def test_file_is_read_layer_by_layer(tmp_path):
    """Each published layer is given with its change, of all its rows or of some."""
    tensors = _lora(SHAPES)
    path = _write(tensors, tmp_path / "x.safetensors")

    found = dict(published.read(path, SHAPES))

    assert {layer: change.shape for layer, change in found.items()} == SHAPES
    assert torch.equal(found["block.qkv"].weight(), _change(tensors, "block.qkv"))
    assert torch.allclose(found["block.qkv"].rows(2, 3).weight(), _change(tensors, "block.qkv")[2:5], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block.out.lora_A.weight": None, "block.out.lora_B.weight": None}, "missing or unknown"),
        ({"other.lora_A.weight": torch.ones(3, 5), "other.lora_B.weight": torch.ones(4, 3)}, "missing or unknown"),
        ({"block.out.lora_B.weight": None}, "not a whole LoRA"),
        ({"block.out.alpha": torch.ones(1)}, "not a whole LoRA"),
        ({"block.out.lora_B.weight": torch.ones(7, RANK)}, "7 x 6 values"),
        ({"block.out.lora_A.weight": torch.ones(RANK, 5)}, "6 x 5 values"),
        ({"block.out.lora_A.weight": torch.ones(RANK + 1, 6)}, "do not belong together"),
        ({"block.out.lora_A.weight": torch.full((RANK, 6), float("nan"))}, "not numbers, in block.out"),
        ({key: torch.zeros_like(tensor) for key, tensor in _lora(SHAPES).items()}, "changes nothing"),
    ],
)
def test_broken_file_is_refused(tmp_path, change, message):
    """Keys that are missing or unknown, other sizes, values that are no numbers and no effect are errors in words."""
    tensors = {key: tensor for key, tensor in (_lora(SHAPES) | change).items() if tensor is not None}
    path = _write(tensors, tmp_path / "x.safetensors")

    with pytest.raises(ModelError, match=message) as caught:
        list(published.read(path, SHAPES))
    assert caught.value.hint


def test_file_with_the_other_names_is_refused(tmp_path):
    """Keys without the prefix are of no use to ComfyUI."""
    save_file(_lora(SHAPES), tmp_path / "x.safetensors")

    with pytest.raises(ModelError, match="not a whole LoRA"):
        list(published.read(tmp_path / "x.safetensors", SHAPES))


def test_layer_without_change_is_told_from_one_with():
    """A change needs both factors."""
    assert Change(torch.ones(1, 2), torch.ones(3, 1)).has_effect
    assert not Change(torch.ones(1, 2), torch.zeros(3, 1)).has_effect
    assert not Change(torch.zeros(1, 2), torch.ones(3, 1)).has_effect


@pytest.mark.parametrize("off", [0.0, 1e-6, 1e-3, 10.0])
def test_distance_is_that_of_all_values(off):
    """Found from the factors alone, it is what the difference of all values gives, and not of their ranks."""
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3, 7), (9, 3)))
    one = Change(a[:2], b[:, :2])
    other = Change(a, torch.cat([b[:, :2], off * b[:, 2:]], dim=1))

    expected = (other.b @ other.a - one.b @ one.a).norm() / (one.b @ one.a).norm()
    assert one.distance(other) == pytest.approx(expected.item(), rel=1e-2, abs=5e-8)


def test_changes_of_a_file_are_counted(tmp_path):
    """All keys of a file belong to layers, two to each."""
    with changes.read(_write(_lora(SHAPES), tmp_path / "x.safetensors"), published.PREFIX) as file:
        assert (file.layers, file.keys) == (("block.out", "block.qkv"), 4)
