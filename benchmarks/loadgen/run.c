/* The phases of a run in which messages go to and fro. */
#include "loadgen.h"

#include <sys/prctl.h>

struct window window;
static uint64_t phase_ends, probe_due;
static int storm_began, storm_started;

static void enter(enum phase next, uint64_t at, double seconds)
{
    phase = next;
    phase_ends = at + (uint64_t)(seconds * (double)SECOND);
    last_delivery = at;
}

static void say_goodbye(uint64_t at)
{
    static const unsigned char normal[] = {1000 >> 8, 1000 & 255};
    enter(GOODBYE, at, CLOSE_SECONDS);
    for (int i = 0; i < options.clients; i++) {
        queue_frame(&clients[i], CLOSE, normal, sizeof normal);
        flush(&clients[i]);
    }
    for (int i = options.clients; i < client_count; i++)
        if (clients[i].fd >= 0)
            hang_up(&clients[i]);
}

static void keep_probing(uint64_t at)
{
    if (unprobed_clients == 0) {
        enter(WARM_UP, at, options.warmup);
        start_schedule(at);
    } else if (at >= phase_ends) {
        fail("only %d of %d clients hear their channels after %d s",
             options.clients - unprobed_clients, options.clients, options.timeout);
    } else if (at >= probe_due) {
        probe_due = at + SECOND / 4;
        send_probes();
    }
}

static void begin_measuring(uint64_t at)
{
    enter(MEASURE, at, options.storm ? CONNECT_SECONDS : options.seconds);
    measuring = true;
    storm_began = opened_count;
    window.began = at;
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
    window.server_cpu = cpu_seconds(window.server);
    for (int i = 0; i < window.watched; i++)
        window.cpu[i] = cpu_seconds(window.clocks[i]);
}

static void end_measuring(uint64_t at)
{
    enter(DRAIN, at, 0);
    measuring = false;
    window.nanoseconds = at - window.began;
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - window.own_cpu;
    window.server_cpu = cpu_seconds(window.server) - window.server_cpu;
    for (int i = 0; i < window.watched; i++)
        window.cpu[i] = cpu_seconds(window.clocks[i]) - window.cpu[i];
    window.stormed = opened_count - storm_began;
}

/* A few new connections each time, so that what arrives meanwhile is read without delay. */
static void keep_storming(uint64_t at)
{
    int opened = opened_count - storm_began;
    if (opened == options.storm || at >= phase_ends) {
        end_measuring(at);
        if (opened < options.storm)
            fail("only %d of the storm's %d connections opened", opened, options.storm);
        return;
    }
    for (int i = 0; i < 8 && storm_started < options.storm; i++) {
        if (storm_started - opened >= options.pending)
            break;
        start_connecting(options.clients + options.idle + storm_started++);
    }
}

static void drained(uint64_t at)
{
    if (!options.ask) {
        say_goodbye(at);
        return;
    }
    enter(ASK, at, options.timeout);
    queue_frame(&clients[0], TEXT, options.ask, strlen(options.ask));
    flush(&clients[0]);
}

static void next_phase(uint64_t at)
{
    bool stalled = at > last_delivery && at - last_delivery > (uint64_t)options.timeout * SECOND;
    if (phase == PROBE)
        keep_probing(at);
    else if (phase == WARM_UP && at >= phase_ends)
        begin_measuring(at);
    else if (phase == MEASURE && options.storm && !stalled)
        keep_storming(at);
    else if (phase == MEASURE && at >= phase_ends)
        end_measuring(at);
    else if (phase == DRAIN && all_finished())
        drained(at);
    else if (phase == ASK && answer)
        say_goodbye(at);
    else if (phase == GOODBYE && (open_count == 0 || at >= phase_ends))
        phase = OVER;
    else if (phase == ASK && at >= phase_ends)
        fail("the server did not answer \"%s\"", options.ask);
    else if (phase != GOODBYE && phase != OVER && stalled)
        phase = OVER; /* what is still missing is lost */
}

/* Wait for the network, the clock of what is sent, or the next look at the phase. */
static struct timespec patience(uint64_t at)
{
    uint64_t next = next_scheduled(), longest = SECOND / 50;
    if (phase == MEASURE && options.storm && storm_started < options.storm &&
        storm_started - (opened_count - storm_began) < options.pending)
        longest = 0;
    if (phase == WARM_UP || phase == MEASURE)
        longest = phase_ends > at && phase_ends - at < longest ? phase_ends - at : longest;
    uint64_t wait = next <= at ? 0 : next - at < longest ? next - at : longest;
    return (struct timespec){.tv_nsec = (long)wait};
}

void run(void)
{
    prctl(PR_SET_TIMERSLACK, 1); /* the clock of what is sent is exact */
    connect_range(0, options.clients, 16);
    if (options.idle)
        connect_range(options.clients, options.idle, 64);
    enter(PROBE, now(), options.timeout);
    while (phase != OVER) {
        uint64_t at = now();
        next_phase(at);
        publish_scheduled(at);
        if (phase != OVER)
            handle_events(patience(at));
    }
    if (measuring)
        end_measuring(now());
    for (int i = 0; i < stream_count; i++)
        for (uint32_t n = streams[i].oldest; n != streams[i].next; n++)
            lost += streams[i].window[n % MAX_INFLIGHT].missing;
}
