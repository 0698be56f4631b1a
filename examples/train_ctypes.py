"""Trains with a compiled step from Python; arrays in and out are the step's own memory.

    python train_ctypes.py libstgc.so.0 ./step.so text.txt 100
"""
import ctypes as C, sys
import numpy as np

class Tensor(C.Structure):  # StgcTensor of stgc.h
    _fields_ = [("size", C.c_uint32), ("kind", C.c_int32), ("type", C.c_int32), ("rank", C.c_int32),
                ("dims", C.c_int64 * 8), ("bytes", C.c_int64), ("name", C.c_char_p), ("data", C.c_void_p)]

TYPES = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
lib = C.CDLL(sys.argv[1])
lib.stgc_open.restype = C.c_void_p
lib.stgc_error.restype = C.c_char_p
for f in ("stgc_status", "stgc_error", "stgc_step", "stgc_close"):
    getattr(lib, f).argtypes = [C.c_void_p]
lib.stgc_tensor.argtypes = [C.c_void_p, C.c_char_p, C.POINTER(Tensor)]

def check(status):
    if status:
        sys.exit(lib.stgc_error(h).decode())

def array(name):
    t = Tensor(size=C.sizeof(Tensor))
    check(lib.stgc_tensor(h, name.encode(), t))
    buffer = (C.c_char * t.bytes).from_address(t.data)
    return np.frombuffer(buffer, TYPES[t.type]).reshape(t.dims[:t.rank])

h = lib.stgc_open(sys.argv[2].encode(), None)
check(lib.stgc_status(h))
text = np.frombuffer(open(sys.argv[3], "rb").read(), np.uint8)
ids, labels = array("input_ids"), array("labels")
for step in range(int(sys.argv[4])):
    ids[:] = labels[:] = text.take(np.arange(ids.size) + step * ids.size, mode="wrap").reshape(ids.shape)
    check(lib.stgc_step(h))
    print(step + 1, float(array("loss/total")), array("moe/0/tokens").astype(int))
lib.stgc_close(h)
