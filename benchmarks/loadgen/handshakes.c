/* Handshakes one after the other: connect, 101, close; what one costs the server. */
#include "loadgen.h"

static uint64_t ends, completed, in_window;

/* A client that has its 101 says goodbye; the server hangs up; the client comes again. */
static void leave(struct client *c)
{
    if (measuring) {
        note_latency(now() - c->began);
        in_window++;
    }
    expect_hangup(c);
}

static void come_again(struct client *c)
{
    completed++;
    if (now() < ends)
        start_connecting((int)(c - clients));
}

static void begin_window(void)
{
    measuring = true;
    window.began = now();
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
    window.server_cpu = cpu_seconds(window.server);
}

static void end_window(void)
{
    measuring = false;
    window.nanoseconds = now() - window.began;
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - window.own_cpu;
    window.server_cpu = cpu_seconds(window.server) - window.server_cpu;
}

int run_handshakes(void)
{
    on_opened = leave;
    on_ended = come_again;
    phase = PROBE;
    uint64_t start = now(), begins = start + (uint64_t)(options.warmup * (double)SECOND);
    ends = begins + (uint64_t)(options.seconds * (double)SECOND);
    for (int i = 0; i < options.clients; i++)
        start_connecting(i);
    while (phase != OVER && open_count && now() < ends + (uint64_t)options.timeout * SECOND) {
        if (!measuring && !window.began && now() >= begins)
            begin_window();
        if (measuring && now() >= ends)
            end_window();
        handle_events((struct timespec){.tv_nsec = 10000000});
    }
    if (measuring)
        end_window();
    if (open_count && !first_failure())
        fail("%d connections were not ended by the server", open_count);
    printf("{\"mode\": \"handshakes\", \"clients\": %d, \"handshakes\": %" PRIu64
           ", \"seconds\": %.4f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
           "\"total_handshakes\": %" PRIu64 ", \"loadgen_cpu_s\": %.4f, \"server_cpu_s\": %.4f}\n",
           options.clients, in_window, (double)window.nanoseconds / 1e9, percentile_us(0.50),
           percentile_us(0.99), longest_us(), completed, window.own_cpu, window.server_cpu);
    fflush(stdout);
    if (first_failure())
        die(1, "%s", first_failure());
    if (!in_window)
        die(1, "no handshake was completed during the measurement");
    return 0;
}
