/* standin_stream.c: the stand-in's streams, events, graphs, transfers and launches. Work waits in
 * its stream until somebody waits for it; a random draw may let some of it run earlier. */
#include "tests/cuda/standin.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct CUgraph_st {
    Object object;
    Work *first, **last;
};

struct CUgraphExec_st {
    Object object;
    Work *first, **last;
};

struct CUstream_st {
    Object object;
    Work *first, **last;
    int64_t entered, done; /* pieces of work */
    CuGraph capture;       /* what is captured; NULL: nothing is */
    bool invalid;          /* a forbidden call was made meanwhile */
    pthread_t owner;       /* the thread that made it */
};

struct CUevent_st {
    Object object;
    CuStream stream; /* where it was recorded last */
    int64_t after;   /* happens when so many pieces are done */
    bool captured;
};

/* ---- work ---- */

static Work *copy_work(CuResult (*run)(void *), const void *arguments, size_t bytes) {
    Work *w = calloc(1, sizeof *w);
    if (!w)
        abort();
    w->run = run;
    w->arguments = malloc(bytes);
    if (!w->arguments)
        abort();
    memcpy(w->arguments, arguments, bytes);
    w->bytes = bytes;
    return w;
}

static void free_work(Work *w) {
    for (Work *next; w; w = next) {
        next = w->next;
        free(w->arguments);
        free(w);
    }
}

/* Runs the first piece; after an error nothing runs any more. */
static void advance(CuStream s) {
    Work *w = s->first;
    CuResult r = standin.sticky ? standin.sticky : w->run(w->arguments);
    if (r != CU_OK)
        standin.sticky = r;
    s->first = w->next;
    if (!s->first)
        s->last = &s->first;
    s->done++;
    w->next = NULL;
    free_work(w);
}

static CuResult finish(CuStream s, int64_t pieces) {
    while (s->first && s->done < pieces)
        advance(s);
    return standin.sticky;
}

static CuStream next_stream(Object *o) {
    while (o && o->kind != OBJECT_STREAM)
        o = o->next;
    return (CuStream)o;
}

bool standin_pending(void) {
    for (CuStream s = next_stream(standin.objects); s; s = next_stream(s->object.next))
        if (s->first && pthread_equal(s->owner, pthread_self()))
            return true;
    return false;
}

/* A GPU may do any of it at any time. */
static void maybe_advance(void) {
    if (!standin.inject.seed)
        return;
    for (CuStream s = next_stream(standin.objects); s; s = next_stream(s->object.next))
        for (uint64_t n = standin_random() % 4; n && s->first; n--)
            advance(s);
}

CuResult standin_enqueue(CuStream stream, CuResult (*run)(void *), const void *arguments,
                         size_t bytes) {
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (!standin_is(stream, OBJECT_STREAM)) {
        standin_misuse("work is given to no stream"); /* the default stream is nobody's here */
        return CU_INVALID_HANDLE;
    }
    Work *w = copy_work(run, arguments, bytes);
    if (stream->capture) {
        *stream->capture->last = w;
        stream->capture->last = &w->next;
        return stream->invalid ? standin_say(CU_CAPTURE_INVALIDATED, "a call was forbidden")
                               : CU_OK;
    }
    *stream->last = w;
    stream->last = &w->next;
    stream->entered++;
    maybe_advance();
    return CU_OK;
}

bool standin_capturing(CuStream stream) {
    return standin_is(stream, OBJECT_STREAM) && stream->capture;
}

/* In mode THREAD_LOCAL: calls that could wait for, or take memory from, what is being captured. */
CuResult standin_not_in_capture(const char *call) {
    for (CuStream s = next_stream(standin.objects); s; s = next_stream(s->object.next))
        if (s->capture && pthread_equal(s->owner, pthread_self())) {
            s->invalid = true;
            return standin_say(CU_CAPTURE_UNSUPPORTED, "%s during a capture", call);
        }
    return CU_OK;
}

/* ---- streams ---- */

CuResult cuStreamCreate(CuStream *stream, unsigned flags) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (flags != CU_NON_BLOCKING)
        standin_misuse("cuStreamCreate: flags %u are not known here", flags);
    CuStream s = standin_object(OBJECT_STREAM, sizeof *s);
    s->last = &s->first;
    s->owner = pthread_self();
    *stream = s;
    return CU_OK;
}

CuResult cuStreamDestroy_v2(CuStream stream) {
    STANDIN_LOCK;
    if (!standin_is(stream, OBJECT_STREAM)) {
        standin_misuse("cuStreamDestroy: no stream");
        return CU_INVALID_HANDLE;
    }
    if (stream->first && !standin.sticky)
        standin_misuse("a stream is destroyed with work in it");
    if (stream->capture)
        standin_misuse("a stream is destroyed while it is captured");
    free_work(stream->first);
    standin_forget(stream);
    return standin_enter();
}

CuResult cuStreamSynchronize(CuStream stream) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK && !standin_is(stream, OBJECT_STREAM)) {
        standin_misuse("cuStreamSynchronize: no stream");
        return CU_INVALID_HANDLE;
    }
    if (r == CU_OK)
        r = standin_not_in_capture("cuStreamSynchronize");
    standin.counts.syncs += r == CU_OK;
    return r == CU_OK ? finish(stream, stream->entered) : r;
}

/* ---- events ---- */

CuResult cuEventCreate(CuEvent *event, unsigned flags) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (flags != CU_NO_TIMING)
        standin_misuse("cuEventCreate: an emulator has no times (flags %u)", flags);
    *event = standin_object(OBJECT_EVENT, sizeof **event);
    return CU_OK;
}

CuResult cuEventDestroy_v2(CuEvent event) {
    STANDIN_LOCK;
    if (!standin_is(event, OBJECT_EVENT)) {
        standin_misuse("cuEventDestroy: no event");
        return CU_INVALID_HANDLE;
    }
    standin_forget(event);
    return standin_enter();
}

CuResult cuEventRecord(CuEvent event, CuStream stream) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (!standin_is(event, OBJECT_EVENT) || !standin_is(stream, OBJECT_STREAM))
        return standin_say(CU_INVALID_HANDLE, "no event or no stream");
    event->captured = stream->capture != NULL;
    event->stream = stream;
    event->after = stream->entered;
    return CU_OK;
}

CuResult cuEventSynchronize(CuEvent event) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK && !standin_is(event, OBJECT_EVENT))
        return standin_say(CU_INVALID_HANDLE, "no event");
    if (r == CU_OK)
        r = standin_not_in_capture("cuEventSynchronize");
    if (r != CU_OK)
        return r;
    if (event->captured)
        return standin_say(907, "the event belongs to a capture");
    return event->stream ? finish(event->stream, event->after) : CU_OK;
}

/* ---- transfers ---- */

typedef struct Transfer {
    CuAddress to, from;
    void *host;
    const void *from_host;
    size_t bytes, pitch, height;
    unsigned char byte;
} Transfer;

/* What a transfer does wrong is known when it runs. */
static CuResult said(bool ok) {
    return ok ? CU_OK : standin_say(CU_ILLEGAL_ADDRESS, "%s", ptx_error(standin.device));
}

static CuResult run_upload(void *arguments) {
    Transfer *t = arguments;
    standin.counts.uploads++;
    standin.counts.uploaded += (int64_t)t->bytes;
    return said(ptx_write(standin.device, t->to, t->from_host, t->bytes));
}

static CuResult run_download(void *arguments) {
    Transfer *t = arguments;
    standin.counts.downloads++;
    standin.counts.downloaded += (int64_t)t->bytes;
    return said(ptx_read(standin.device, t->host, t->from, t->bytes, true));
}

static CuResult run_copy(void *arguments) {
    Transfer *t = arguments;
    return said(ptx_copy(standin.device, t->to, t->from, t->bytes));
}

static CuResult run_fill(void *arguments) {
    Transfer *t = arguments;
    CuResult r = CU_OK;
    for (size_t i = 0; i < t->height && r == CU_OK; i++)
        r = said(ptx_fill(standin.device, t->to + i * t->pitch, t->byte, t->bytes));
    return r;
}

/* Pageable memory is read and written by the driver before the call returns, outside of streams'
 * freedom: the runtime must not use it. */
static CuResult need_pinned(const char *call, const void *host, size_t bytes) {
    if (standin_pinned(host, bytes))
        return CU_OK;
    standin_misuse("%s: memory of the host that is not pinned", call);
    return CU_INVALID_VALUE;
}

CuResult cuMemcpyHtoDAsync_v2(CuAddress to, const void *from, size_t bytes, CuStream stream) {
    STANDIN_LOCK;
    Transfer t = {.to = to, .from_host = from, .bytes = bytes};
    CuResult r = need_pinned("cuMemcpyHtoDAsync", from, bytes);
    return r == CU_OK ? standin_enqueue(stream, run_upload, &t, sizeof t) : r;
}

CuResult cuMemcpyDtoHAsync_v2(void *to, CuAddress from, size_t bytes, CuStream stream) {
    STANDIN_LOCK;
    Transfer t = {.host = to, .from = from, .bytes = bytes};
    CuResult r = need_pinned("cuMemcpyDtoHAsync", to, bytes);
    return r == CU_OK ? standin_enqueue(stream, run_download, &t, sizeof t) : r;
}

CuResult cuMemcpyDtoDAsync_v2(CuAddress to, CuAddress from, size_t bytes, CuStream stream) {
    STANDIN_LOCK;
    Transfer t = {.to = to, .from = from, .bytes = bytes};
    return standin_enqueue(stream, run_copy, &t, sizeof t);
}

CuResult cuMemsetD8Async(CuAddress to, unsigned char byte, size_t bytes, CuStream stream) {
    STANDIN_LOCK;
    Transfer t = {.to = to, .bytes = bytes, .byte = byte, .height = 1};
    return standin_enqueue(stream, run_fill, &t, sizeof t);
}

CuResult cuMemsetD2D8Async(CuAddress to, size_t pitch, unsigned char byte, size_t width,
                           size_t height, CuStream stream) {
    STANDIN_LOCK;
    Transfer t = {.to = to, .bytes = width, .pitch = pitch, .byte = byte, .height = height};
    if (width > pitch)
        return standin_say(CU_INVALID_VALUE, "cuMemsetD2D8: rows overlap");
    return standin_enqueue(stream, run_fill, &t, sizeof t);
}

/* ---- launches ---- */

enum { MAX_PARAMS = 4096 }; /* bytes */
typedef struct Launch {
    Function *function;
    unsigned grid[3], block[3], shared;
    size_t bytes;
    unsigned char params[MAX_PARAMS];
} Launch;

static CuResult run_launch(void *arguments) {
    Launch *l = arguments;
    standin.counts.launches++;
    if (standin_due(&standin.inject.launch))
        return standin_say(CU_LAUNCH_FAILED, "injected");
    bool ok = ptx_launch(standin.device, l->function->kernel, l->grid, l->block, l->shared,
                         l->params, l->bytes);
    return said(ok);
}

static CuResult check_launch(const Launch *l) {
    const PtxKernelInfo *i = &l->function->info;
    unsigned long long threads = 1;
    for (int a = 0; a < 3; a++) {
        if (!l->grid[a] || !l->block[a] || l->grid[a] > (a ? 65535u : 2147483647u))
            return standin_say(CU_INVALID_VALUE, "a grid of %u %u %u, blocks of %u %u %u",
                               l->grid[0], l->grid[1], l->grid[2], l->block[0], l->block[1],
                               l->block[2]);
        threads *= l->block[a];
    }
    if (threads > (unsigned long long)i->max_threads)
        return standin_say(CU_INVALID_VALUE, "%llu threads, the kernel is for %d", threads,
                           i->max_threads);
    int granted =
        l->function->max_dynamic ? l->function->max_dynamic : (48 << 10) - i->shared_static;
    if ((int)l->shared > granted)
        return standin_say(CU_INVALID_VALUE, "%u bytes of shared memory, %d were granted",
                           l->shared, granted);
    if (i->params_bytes > MAX_PARAMS)
        return standin_say(CU_INVALID_VALUE, "%d bytes of parameters", i->params_bytes);
    return CU_OK;
}

CuResult cuLaunchKernel(CuFunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                        CuStream stream, void **params, void **extra) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (!standin_is_function(function)) {
        standin_misuse("cuLaunchKernel: no function");
        return CU_INVALID_HANDLE;
    }
    Launch l = {.function = (Function *)function,
                .grid = {grid_x, grid_y, grid_z},
                .block = {block_x, block_y, block_z},
                .shared = shared};
    const PtxKernelInfo *i = &l.function->info;
    if (extra || (i->nparams && !params))
        return standin_say(CU_INVALID_VALUE, "no parameters");
    r = check_launch(&l);
    if (r == CU_OK && standin_due(&standin.inject.refuse))
        r = standin_say(CU_LAUNCH_OUT_OF_RESOURCES, "injected");
    if (r != CU_OK)
        return r;
    for (int p = 0; p < i->nparams; p++)
        memcpy(l.params + i->param_offset[p], params[p], (size_t)i->param_bytes[p]);
    l.bytes = (size_t)i->params_bytes;
    return standin_enqueue(stream, run_launch, &l, sizeof l);
}

/* ---- graphs ---- */

CuResult cuStreamBeginCapture_v2(CuStream stream, unsigned mode) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (mode != CU_CAPTURE_THREAD_LOCAL)
        standin_misuse("cuStreamBeginCapture: mode %u is not known here", mode);
    if (standin.inject.no_capture)
        return standin_say(CU_NOT_SUPPORTED, "injected");
    if (!standin_is(stream, OBJECT_STREAM) || stream->capture)
        return standin_say(CU_INVALID_HANDLE, "no stream, or one that is captured");
    CuGraph g = standin_object(OBJECT_GRAPH, sizeof *g);
    g->last = &g->first;
    stream->capture = g;
    stream->invalid = false;
    return CU_OK;
}

CuResult cuStreamEndCapture(CuStream stream, CuGraph *graph) {
    STANDIN_LOCK;
    *graph = NULL;
    if (!standin_is(stream, OBJECT_STREAM) || !stream->capture)
        return standin_say(CU_INVALID_VALUE, "nothing is captured");
    CuGraph g = stream->capture;
    stream->capture = NULL;
    if (stream->invalid) {
        free_work(g->first);
        standin_forget(g);
        return standin_say(CU_CAPTURE_INVALIDATED, "a call was forbidden");
    }
    *graph = g;
    return standin_enter();
}

CuResult cuGraphInstantiateWithFlags(CuGraphExec *exec, CuGraph graph, unsigned long long flags) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r != CU_OK)
        return r;
    if (flags)
        standin_misuse("cuGraphInstantiate: flags %llu are not known here", flags);
    if (!standin_is(graph, OBJECT_GRAPH))
        return standin_say(CU_INVALID_HANDLE, "no graph");
    if (standin.inject.no_instantiate)
        return standin_say(CU_NOT_SUPPORTED, "injected");
    CuGraphExec e = standin_object(OBJECT_EXEC, sizeof *e);
    e->last = &e->first;
    for (const Work *w = graph->first; w; w = w->next) {
        *e->last = copy_work(w->run, w->arguments, w->bytes);
        e->last = &(*e->last)->next;
    }
    *exec = e;
    return CU_OK;
}

CuResult cuGraphLaunch(CuGraphExec exec, CuStream stream) {
    STANDIN_LOCK;
    CuResult r = standin_enter();
    if (r == CU_OK && !standin_is(exec, OBJECT_EXEC)) {
        standin_misuse("cuGraphLaunch: no graph");
        return CU_INVALID_HANDLE;
    }
    if (r == CU_OK && standin_capturing(stream))
        standin_misuse("a graph is launched into a capture");
    standin.counts.graph_launches += r == CU_OK;
    for (const Work *w = r == CU_OK ? exec->first : NULL; w && r == CU_OK; w = w->next)
        r = standin_enqueue(stream, w->run, w->arguments, w->bytes);
    return r;
}

CuResult cuGraphExecDestroy(CuGraphExec exec) {
    STANDIN_LOCK;
    if (!standin_is(exec, OBJECT_EXEC)) {
        standin_misuse("cuGraphExecDestroy: no graph");
        return CU_INVALID_HANDLE;
    }
    free_work(exec->first);
    standin_forget(exec);
    return standin_enter();
}

CuResult cuGraphDestroy(CuGraph graph) {
    STANDIN_LOCK;
    if (!standin_is(graph, OBJECT_GRAPH)) {
        standin_misuse("cuGraphDestroy: no graph");
        return CU_INVALID_HANDLE;
    }
    free_work(graph->first);
    standin_forget(graph);
    return standin_enter();
}
