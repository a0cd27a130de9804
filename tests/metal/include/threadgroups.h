// Threadgroups on a CPU: a group's threads are fibers that give way at barriers. All of them have to wait at the same
// barrier before one goes on; otherwise the launch fails. Groups and threads run in an order drawn from a seed.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdlib>

#include "checked_memory.h"

namespace emulator {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK = 128 << 10;  // bytes of a fiber

enum class State { waiting, finished };

struct Fiber {
    ucontext_t start;
    jmp_buf resume;
    bool started;
    State state;
    int line;     // of the barrier where it waits
    bool orders;  // that barrier orders threadgroup memory
};

struct Launch {
    void (*thread)(Memory* buffers, uint32_t thread, uint32_t groups);
    Memory* buffers;
    uint32_t groups, threads, seed;
};

inline Fiber fibers[MAX_THREADS];
inline uint32_t order[MAX_THREADS];
inline jmp_buf scheduler, aborted;
inline uint32_t current;
inline Launch launch;
inline uint32_t group;

[[noreturn]] inline void abandon() { _longjmp(aborted, 1); }

inline void give_way(State state, bool orders, int line) {
    Fiber& fiber = fibers[current];
    fiber.state = state;
    fiber.orders = orders;
    fiber.line = line;
    if (!_setjmp(fiber.resume)) _longjmp(scheduler, 1);
}

inline void barrier(bool orders, int line) { give_way(State::waiting, orders, line); }

// A fiber that has finished is resumed for the next group.
inline void run_fiber() {
    while (true) {
        launch.thread(launch.buffers, group * launch.threads + current, launch.groups);
        give_way(State::finished, true, 0);
    }
}

// Stacks are kept for the life of the process and touched only as far as they are used.
inline unsigned char* stack_of(uint32_t thread) {
    static unsigned char* stacks = static_cast<unsigned char*>(malloc(MAX_THREADS * STACK));
    return stacks + thread * STACK;
}

inline void start(uint32_t thread) {
    Fiber& fiber = fibers[thread];
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stack_of(thread);
    fiber.start.uc_stack.ss_size = STACK;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_fiber, 0);
    setcontext(&fiber.start);
}

inline void step(uint32_t thread) {
    current = thread;
    now.thread = group * launch.threads + thread + 1;
    if (_setjmp(scheduler)) return;
    if (fibers[thread].started) _longjmp(fibers[thread].resume, 1);
    start(thread);
}

inline void swap(uint32_t& a, uint32_t& b) {
    const uint32_t kept = a;
    a = b;
    b = kept;
}

inline void shuffle(uint32_t* values, uint32_t count, uint32_t& state) {
    for (uint32_t i = 0; i < count; i++) values[i] = i;
    for (uint32_t i = count; i > 1 && launch.seed; i--) {
        state = state * 1664525u + 1013904223u;
        swap(values[i - 1], values[(state >> 8) % i]);
    }
}

inline void check_barrier() {
    const Fiber& first = fibers[order[0]];
    for (uint32_t i = 1; i < launch.threads; i++) {
        const Fiber& other = fibers[order[i]];
        if (other.state == first.state && other.line == first.line) continue;
        const bool first_waits = first.state == State::waiting;
        const Fiber &waits = first_waits ? first : other, &apart = first_waits ? other : first;
        const uint32_t at = first_waits ? order[0] : order[i], away = first_waits ? order[i] : order[0];
        char place[48] = "has finished";
        if (apart.state == State::waiting) snprintf(place, sizeof place, "waits in line %d", apart.line);
        fail("divergent barrier in group %u: thread %u waits in line %d, thread %u of the same group %s", group, at,
             waits.line, away, place);
    }
}

inline void run_group() {
    now.group++;
    fibers[0].orders = true;
    do {
        if (fibers[0].orders) now.epoch++;
        for (uint32_t i = 0; i < launch.threads; i++) step(order[i]);
        check_barrier();
    } while (fibers[0].state == State::waiting);
}

// Runs every group; returns what went wrong, or "".
inline const char* run(const Launch& what) {
    launch = what;
    message[0] = 0;
    if (launch.threads > MAX_THREADS) {
        snprintf(message, sizeof message, "%u threads in a group, more than %u", launch.threads, MAX_THREADS);
        return message;
    }
    uint32_t* groups = static_cast<uint32_t*>(malloc(launch.groups * sizeof(uint32_t)));
    uint32_t state = launch.seed;
    shuffle(groups, launch.groups, state);
    if (_setjmp(aborted)) {
        for (Fiber& fiber : fibers) fiber.started = false;
    } else {
        for (uint32_t i = 0; i < launch.groups; i++) {
            group = groups[i];
            shuffle(order, launch.threads, state);
            run_group();
        }
    }
    free(groups);
    return message;
}

}  // namespace emulator
