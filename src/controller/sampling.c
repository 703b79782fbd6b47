/* Samples: a tick of the guest's timer makes it leave, and the thread in ls_execute looks at it. */
#include "sampling.h"

#include <errno.h>
#include <stdlib.h>

#include "../error.h"
#include "controller.h"

enum { DEFAULT_ROOM = 1024, NS_PER_S = 1000000000, NS_PER_MS = 1000000 };

static void fill(const ls_controller *c, uint32_t weight, ls_sample *sample) {
  ls_position now = place_now(c, LS_RUNNING);
  sample->id = now.id;
  sample->instruction = now.instruction;
  sample->weight = weight;
  sample->state = c->guest.outcome.state;
}

static void put(ls_controller *c, uint32_t weight) {
  sampler *s = &c->sampler;
  uint64_t written = atomic_load_explicit(&s->written, memory_order_relaxed);
  if (written - atomic_load_explicit(&s->read, memory_order_acquire) == s->room) {
    atomic_fetch_add_explicit(&s->dropped, 1, memory_order_relaxed);
    return;
  }
  fill(c, weight, &s->ring[written % s->room]);
  atomic_store_explicit(&s->written, written + 1, memory_order_release);
}

void sample_if_due(ls_controller *c) {
  uint32_t weight = c->executor->sample_ticks;
  if (!weight)
    return;
  c->executor->sample_ticks = 0;
  if (!c->sampler.callback) {
    put(c, weight);
    return;
  }
  ls_sample sample;
  fill(c, weight, &sample);
  c->sampler.callback(&sample, c->sampler.context);
}

/* The guest's timer is the one of its time limit, which goes by what a tick is. */
static void set_tick(ls_executor *executor, uint64_t tick_ns, bool sampling) {
  executor->tick_ns = tick_ns;
  executor->sampling = sampling;
  executor->sample_ticks = 0;
  executor->ops->changed(executor);
}

static ls_status check(const ls_controller *c, uint32_t rate, ls_error *error) {
  if (!c)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "ls_sample_start needs a controller");
  if (rate < LS_SAMPLE_RATE_MIN || rate > LS_SAMPLE_RATE_MAX)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "a sampling rate is %d to %d a second, not %u",
                     LS_SAMPLE_RATE_MIN, LS_SAMPLE_RATE_MAX, rate);
  return LS_OK;
}

/* Replaces callback and ring; returns the old ring, to be freed. */
static ls_sample *replace(sampler *s, ls_sample_callback callback, void *context, ls_sample *ring,
                          uint32_t room) {
  ls_sample *before = s->ring;
  s->callback = callback;
  s->context = context;
  s->ring = ring;
  s->room = room;
  atomic_store(&s->written, 0);
  atomic_store(&s->read, 0);
  atomic_store(&s->dropped, 0);
  return before;
}

ls_status ls_sample_start(ls_controller *c, uint32_t rate, ls_sample_callback callback, void *context,
                          uint32_t room, ls_error *error) {
  ls_status status = check(c, rate, error);
  if (status)
    return status;
  ls_sample *ring = NULL;
  room = callback ? 0 : room ? room : DEFAULT_ROOM;
  if (room && !(ring = aligned_alloc(_Alignof(ls_sample), (size_t)room * sizeof *ring)))
    return error_set(error, LS_ERR_MEMORY, ENOMEM, LS_NONE, "no memory for a ring of %u samples", room);
  hold how;
  status = guest_hold(c, &how, error);
  if (!status) {
    ring = replace(&c->sampler, callback, context, ring, room);
    set_tick(c->executor, NS_PER_S / rate, true);
    guest_release(c, how);
  }
  free(ring);
  return status;
}

ls_status ls_sample_stop(ls_controller *c, ls_error *error) {
  if (!c)
    return error_set(error, LS_ERR_ARGUMENT, 0, LS_NONE, "ls_sample_stop needs a controller");
  hold how;
  ls_status status = guest_hold(c, &how, error);
  if (status)
    return status;
  if (c->executor->sampling)
    set_tick(c->executor, c->executor->options.tick_ms * (uint64_t)NS_PER_MS, false);
  guest_release(c, how);
  return LS_OK;
}

static uint32_t take(sampler *s, ls_sample *samples, uint32_t room) {
  uint64_t read = atomic_load_explicit(&s->read, memory_order_relaxed);
  uint64_t ready = atomic_load_explicit(&s->written, memory_order_acquire) - read;
  uint32_t count = ready < room ? (uint32_t)ready : room;
  for (uint32_t i = 0; i < count; i++)
    samples[i] = s->ring[(read + i) % s->room];
  atomic_store_explicit(&s->read, read + count, memory_order_release);
  return count;
}

ls_status ls_sample_read(ls_controller *c, ls_sample *samples, uint32_t room, uint32_t *count,
                         uint64_t *dropped, ls_error *error) {
  if (!c || !count || (room && !samples) || (uintptr_t)samples % _Alignof(ls_sample))
    return error_set(
        error, LS_ERR_ARGUMENT, 0, LS_NONE,
        "ls_sample_read needs a controller, a place for the count, and samples aligned to %zu bytes",
        _Alignof(ls_sample));
  ls_status status = controller_enter(c, error);
  if (status)
    return status;
  pthread_mutex_lock(&c->turn);
  *count = take(&c->sampler, samples, room);
  uint64_t lost = atomic_exchange(&c->sampler.dropped, 0);
  pthread_mutex_unlock(&c->turn);
  if (dropped)
    *dropped = lost;
  return LS_OK;
}
