/* The thread that guests run in while this one makes requests. */
#ifndef CLI_BENCH_THREAD_H
#define CLI_BENCH_THREAD_H

typedef struct bench_thread bench_thread;

/* A thread that waits for work, on CPU `cpu` unless that is negative; NULL if there can be none. */
bench_thread *bench_thread_create(int cpu);
void bench_thread_destroy(bench_thread *t); /* waits for what it does; NULL is fine */

/* Lets it do `work`, having nothing to do now; waits until that is done. */
void bench_thread_start(bench_thread *t, void (*work)(void *context), void *context);
void bench_thread_wait(bench_thread *t);

#endif
