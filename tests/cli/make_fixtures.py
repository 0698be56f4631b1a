"""make_fixtures.py: writes fixtures/: a tiny language model and batches for it, right and wrong. Run once; the files are committed.
tiny.onnx: logits[batch,seq,16] = (embed[input_ids] * scale) @ head."""
import os
import numpy as np
import onnx
from onnx import TensorProto as T, helper as h, numpy_helper as nh

here = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures")
rng = np.random.default_rng(1)
embed = rng.standard_normal((16, 8)).astype(np.float32) * 0.3
head = rng.standard_normal((8, 16)).astype(np.float32) * 0.3


def model(name, embed=embed, ops=("Gather", "Mul", "MatMul"), dims=("batch", "seq")):
    nodes = [
        h.make_node(ops[0], ["embed.weight", "input_ids"], ["x"], name="embed"),
        h.make_node(ops[1], ["x", "scale"], ["y"], name="scaling"),
        h.make_node(ops[2], ["y", "head.weight"], ["logits"], name="head"),
    ]
    graph = h.make_graph(
        nodes, "tiny",
        [h.make_tensor_value_info("input_ids", T.INT64, list(dims)), h.make_tensor_value_info("scale", T.FLOAT, [dims[0], 1, 1])],
        [h.make_tensor_value_info("logits", T.FLOAT, [*dims, 16])],
        [nh.from_array(embed, "embed.weight"), nh.from_array(head, "head.weight")])
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), os.path.join(here, name))


os.makedirs(here, exist_ok=True)
model("tiny.onnx")
model("fixed.onnx", dims=(2, 5))
bad = embed.copy()
bad[3, 2] = np.nan
model("nan.onnx", embed=bad)
model("unknown.onnx", ops=("Gather", "Frobnicate", "Wibble"))
ids = rng.integers(0, 16, (2, 5))
good = dict(input_ids=ids, scale=np.ones((2, 1, 1), np.float32), labels=ids.copy())


def batch(name, **change):
    np.savez(os.path.join(here, name), **{k: v for k, v in {**good, **change}.items() if v is not None})


batch("batch.npz")
labels = ids.copy()
labels[1, 3] = 99
batch("label99.npz", labels=labels)
batch("ignored.npz", labels=np.full_like(ids, -100))
batch("nan.npz", scale=np.array([1, np.nan], np.float32).reshape(2, 1, 1))
batch("big.npz", scale=np.full((2, 1, 1), 1e38, np.float32))
batch("misnamed.npz", input_ids=None, input_idz=ids)
batch("flat.npz", input_ids=ids.reshape(-1))
batch("float_ids.npz", input_ids=ids.astype(np.float32))
batch("unequal.npz", scale=np.ones((3, 1, 1), np.float32))
batch("no_labels.npz", labels=None)
batch("token99.npz", input_ids=labels)
open(os.path.join(here, "text.bin"), "wb").write(bytes(rng.integers(0, 16, 400).astype(np.uint8)))
open(os.path.join(here, "text99.bin"), "wb").write(bytes(rng.integers(0, 100, 400).astype(np.uint8)))
