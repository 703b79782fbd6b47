#include "bench_thread.h"

#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdlib.h>

struct bench_thread {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  int cpu;
  void (*work)(void *context); /* NULL: nothing to do */
  void *context;
  bool over;
};

static void go_to_cpu(int cpu) {
  cpu_set_t set;
  if (cpu < 0)
    return;
  CPU_ZERO(&set);
  CPU_SET((unsigned)cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

static void *serve(void *context) {
  bench_thread *t = context;
  go_to_cpu(t->cpu);
  pthread_mutex_lock(&t->lock);
  while (!t->over) {
    if (!t->work) {
      pthread_cond_wait(&t->changed, &t->lock);
      continue;
    }
    pthread_mutex_unlock(&t->lock);
    t->work(t->context);
    pthread_mutex_lock(&t->lock);
    t->work = NULL;
    pthread_cond_broadcast(&t->changed);
  }
  pthread_mutex_unlock(&t->lock);
  return NULL;
}

bench_thread *bench_thread_create(int cpu) {
  bench_thread *t = calloc(1, sizeof *t);
  if (!t)
    return NULL;
  t->cpu = cpu;
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->changed, NULL);
  if (pthread_create(&t->thread, NULL, serve, t) == 0)
    return t;
  free(t);
  return NULL;
}

void bench_thread_start(bench_thread *t, void (*work)(void *context), void *context) {
  pthread_mutex_lock(&t->lock);
  t->context = context;
  t->work = work;
  pthread_cond_broadcast(&t->changed);
  pthread_mutex_unlock(&t->lock);
}

void bench_thread_wait(bench_thread *t) {
  pthread_mutex_lock(&t->lock);
  while (t->work)
    pthread_cond_wait(&t->changed, &t->lock);
  pthread_mutex_unlock(&t->lock);
}

void bench_thread_destroy(bench_thread *t) {
  if (!t)
    return;
  bench_thread_wait(t);
  pthread_mutex_lock(&t->lock);
  t->over = true;
  pthread_cond_broadcast(&t->changed);
  pthread_mutex_unlock(&t->lock);
  pthread_join(t->thread, NULL);
  free(t);
}
