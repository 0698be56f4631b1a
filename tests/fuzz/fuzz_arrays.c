/* fuzz_arrays.c: .npz and .npy bytes; what is accepted is touched to its last byte and written and
 * read again. */
#include <stdlib.h>
#include <string.h>

#include "frontend/frontend.h"
#include "fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
    Diag d = {.subject = "fuzz"};
    NamedArrays a;
    if (npz_read_limit(fuzz_file(bytes, n), 1 << 20, &a, &d)) {
        uint64_t sum = 0;
        for (int i = 0; i < a.tensors.n; i++) {
            const Tensor *t = a.tensors.at[i];
            sum += hash_bytes(t->data ? t->data : "", tensor_bytes(t), sum);
            if (arrays_find(&a, a.names.at[i]) == NULL)
                abort();
        }
        static volatile uint64_t sink;
        sink = sum;
        (void)sink;
        arrays_free(&a);
    } else {
        fuzz_check_refusal(&d);
        if (a.names.n || a.tensors.n)
            abort();
    }
    diag_free(&d);
    return 0;
}
