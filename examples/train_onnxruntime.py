"""Trains with a step graph in ONNX Runtime: train_onnxruntime.py STEP.onnx BATCH.npz [STEPS]

STEP.onnx: stgcc transform MODEL.onnx -c C.yaml --data BATCH.npz --emit=step --initial-values -o STEP.onnx
"""
import sys

import numpy as np
import onnxruntime as ort

ort.set_default_logger_severity(3)  # parameters are inputs on purpose: not worth a warning each

step = ort.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
batch = np.load(sys.argv[2])
types = {"tensor(int64)": np.int64, "tensor(float)": np.float32}
# What the batch does not hold is state: the optimizer's moments and the step counter start at zero.
feed = {i.name: batch[i.name] if i.name in batch.files else np.zeros(i.shape, types[i.type]) for i in step.get_inputs()}
names = [o.name for o in step.get_outputs()]
for n in range(int(sys.argv[3]) if len(sys.argv) > 3 else 10):
    got = dict(zip(names, step.run(None, feed)))
    feed.update({name[:-5]: value for name, value in got.items() if name.endswith(".next")})
    print(f"step {n + 1}: loss {got['loss/total']:.6f}, conflicts {got.get('moe/0/conflict_share', np.nan):.3f}")
np.savez("trained.npz", **{name: feed[name] for name in feed if name + ".next" in names})
