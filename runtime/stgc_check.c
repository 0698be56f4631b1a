/* stgc_check.c: a batch is looked at before anything is computed from it, so that a fault in the
 * data never reaches the parameters. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "runtime/handle.h"

static int64_t int_at(const void *data, int32_t type, int64_t i) {
    switch ((StgcType)type) {
    case STGC_I64:
    case STGC_U64:
        return ((const int64_t *)data)[i];
    case STGC_I32:
        return ((const int32_t *)data)[i];
    case STGC_U32:
        return ((const uint32_t *)data)[i];
    case STGC_I16:
        return ((const int16_t *)data)[i];
    case STGC_U16:
        return ((const uint16_t *)data)[i];
    case STGC_I8:
        return ((const int8_t *)data)[i];
    default:
        return ((const uint8_t *)data)[i];
    }
}

static int64_t count_of(const StgcSlot *s) {
    int64_t n = 1;
    for (int i = 0; i < s->rank; i++)
        n *= s->dims[i];
    return n;
}

/* "[0,3]" of element i */
static const char *position(const StgcSlot *s, int64_t i, char *text, size_t size) {
    int64_t index[8] = {0};
    for (int k = s->rank - 1; k >= 0; k--) {
        index[k] = i % s->dims[k];
        i /= s->dims[k];
    }
    int n = snprintf(text, size, "[");
    for (int k = 0; k < s->rank && n < (int)size; k++)
        n += snprintf(text + n, size - (size_t)n, "%s%" PRId64, k ? "," : "", index[k]);
    if (n < (int)size)
        snprintf(text + n, size - (size_t)n, "]");
    return text;
}

static StgcStatus out_of_range(Stgc *h, const StgcCheck *c, const StgcSlot *s, int64_t i,
                               int64_t v) {
    char at[200], ignored[64] = "";
    if (c->has_ignore)
        snprintf(ignored, sizeof ignored, ", or %" PRId64 " to ignore the position", c->ignore);
    return handle_fail(h, STGC_ERR_DATA,
                       "%s: error: %s %" PRId64 " at %s is out of range; expected %" PRId64
                       " to %" PRId64 "%s",
                       c->input, c->what, v, position(s, i, at, sizeof at), c->lo < 0 ? 0 : c->lo,
                       c->hi - 1, ignored);
}

static StgcStatus check_ints(Stgc *h, const StgcCheck *c, int64_t *counted) {
    const Entry *e = entry_find(h, c->input);
    const StgcSlot *s = e ? entry_slot(e) : NULL;
    const void *data = e ? entry_read(h, e) : NULL;
    if (!data)
        return h->status;
    int64_t row = s->rank > 1 ? s->dims[s->rank - 1] : 0, n = count_of(s);
    for (int64_t i = 0; i < n; i++) {
        int64_t v = int_at(data, s->type, i);
        if ((c->has_ignore && v == c->ignore) || (c->skip_first && row && i % row == 0))
            continue;
        if (v < c->lo || v >= c->hi)
            return out_of_range(h, c, s, i, v);
        *counted += c->labels;
    }
    return STGC_OK;
}

/* Infinities are legal: masks hold them. */
static StgcStatus check_nan(Stgc *h, const Entry *e) {
    const StgcSlot *s = entry_slot(e);
    const void *data = entry_read(h, e);
    if (!data || (s->type != STGC_F32 && s->type != STGC_F64))
        return h->status;
    for (int64_t i = 0, n = count_of(s); i < n; i++) {
        double v = s->type == STGC_F32 ? ((const float *)data)[i] : ((const double *)data)[i];
        char at[200];
        if (isnan(v))
            return handle_fail(h, STGC_ERR_DATA, "%s: error: it holds NaN at %s; remove the sample",
                               e->name, position(s, i, at, sizeof at));
    }
    return STGC_OK;
}

/* ---- fewer rows ---- */

static void set_int(void *data, int32_t type, int64_t i, int64_t v) {
    switch ((StgcType)type) {
    case STGC_I64:
    case STGC_U64:
        ((int64_t *)data)[i] = v;
        break;
    case STGC_I32:
    case STGC_U32:
        ((int32_t *)data)[i] = (int32_t)v;
        break;
    case STGC_I16:
    case STGC_U16:
        ((int16_t *)data)[i] = (int16_t)v;
        break;
    default:
        ((int8_t *)data)[i] = (int8_t)v;
    }
}

/* Labels are ignored, the token mask is 0, everything else is as in the first row: valid, whatever
 * it means. */
void batch_fill(Stgc *h, const Entry *e, void *data, int64_t rows) {
    const StgcSlot *s = entry_slot(e);
    size_t row = (size_t)(s->bytes / s->dims[0]);
    char *rest = (char *)data + (size_t)rows * row;
    const StgcCheck *labels = NULL;
    for (uint32_t i = 0; i < h->library->nchecks; i++)
        if (h->library->checks[i].labels && !strcmp(h->library->checks[i].input, e->name))
            labels = &h->library->checks[i];
    if (labels) {
        for (int64_t i = count_of(s) / s->dims[0] * rows; i < count_of(s); i++)
            set_int(data, s->type, i, labels->ignore);
    } else if (h->library->token_mask && !strcmp(h->library->token_mask, e->name)) {
        memset(rest, 0, (size_t)(s->dims[0] - rows) * row);
    } else {
        for (int64_t i = rows; i < s->dims[0]; i++)
            memcpy((char *)data + (size_t)i * row, data, row);
    }
}

/* Every input of the batch has the same number of rows. */
static StgcStatus check_rows(Stgc *h) {
    const Entry *first = NULL;
    for (int32_t i = 0; i < h->nshown; i++) {
        const Entry *e = &h->entries[i];
        const StgcSlot *s = entry_slot(e);
        if (e->kind != STGC_INPUT || s->rank < 1 || s->dims[0] != h->library->batch)
            continue;
        first = first ? first : e;
        if (e->rows != first->rows)
            return handle_fail(h, STGC_ERR_DATA,
                               "%s: error: it was set with %" PRId64 " rows, %s with %" PRId64,
                               e->name, e->rows ? e->rows : h->library->batch, first->name,
                               first->rows ? first->rows : h->library->batch);
    }
    return STGC_OK;
}

StgcStatus batch_check(Stgc *h, int64_t *counted) {
    const StgcLibrary *l = h->library;
    StgcStatus status = check_rows(h);
    bool labels = false;
    *counted = 0;
    for (uint32_t i = 0; i < l->nchecks && status == STGC_OK; i++) {
        status = check_ints(h, &l->checks[i], counted);
        labels |= l->checks[i].labels != 0;
    }
    for (int32_t i = 0; i < h->nentries && status == STGC_OK; i++)
        if (h->entries[i].kind == STGC_INPUT)
            status = check_nan(h, &h->entries[i]);
    if (!labels)
        *counted = 1;
    return status;
}
