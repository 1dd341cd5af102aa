/* Many connections that hardly say anything: how much memory of the server each one takes. */
#include "loadgen.h"

static int answered, at_start, at_open;
static long before, opened_at, after;

static void say(struct client *c)
{
    char *text = allocate(1, wrapped_length(strlen(options.message)));
    size_t length = wrap(text, options.message, strlen(options.message));
    send_now(c, TEXT, text, length);
    free(text);
}

static void on_reply(struct client *c, const unsigned char *payload, size_t length)
{
    size_t wanted = strlen(options.message);
    if (phase == ASK) {
        answer = allocate(1, length + 1);
        memcpy(answer, payload, length);
    } else if (c->state == ANSWERED) {
        duplicates++;
    } else if (length != wrapped_length(wanted) ||
               memcmp(payload + prefix_length(), options.message, wanted)) {
        corrupt++;
    } else {
        c->state = ANSWERED;
        answered++;
        total_deliveries++;
        note_latency(now() - c->began);
    }
}

/* Handle what comes for a while, or until enough clients have their answer. */
static void wait_until(const int *counter, int goal, double seconds)
{
    uint64_t deadline = now() + (uint64_t)(seconds * (double)SECOND);
    while (phase != OVER && (!counter || *counter < goal) && now() < deadline)
        handle_events((struct timespec){.tv_nsec = 10000000});
}

/* The kernel takes a connection before the server does: wait until the server has them all, but
 * for a few files that it may have closed meanwhile. */
static void wait_for_accepts(void)
{
    int goal = at_start + options.clients - 5;
    uint64_t deadline = now() + (uint64_t)options.timeout * SECOND;
    while (open_files(options.server_pid) < goal) {
        if (now() > deadline)
            die(1, "the server accepted only %d of %d connections",
                open_files(options.server_pid) - at_start, options.clients);
        wait_until(NULL, 0, 0.05);
    }
}

static void ask(void)
{
    phase = ASK;
    send_now(&clients[0], TEXT, options.ask, strlen(options.ask));
    uint64_t deadline = now() + (uint64_t)options.timeout * SECOND;
    while (!answer && phase != OVER && now() < deadline)
        handle_events((struct timespec){.tv_nsec = 10000000});
    if (!answer)
        fail("the server did not answer \"%s\"", options.ask);
}

/* Everyone says something and has an answer. */
static void converse(void)
{
    for (int i = 0; i < options.clients && phase != OVER; i++) {
        say(&clients[i]);
        wait_until(&answered, i - 64, options.timeout); /* at most 64 at a time */
    }
    wait_until(&answered, options.clients, options.timeout);
    lost = (uint64_t)(options.clients - answered);
}

int run_crowd(void)
{
    on_text_frame = on_reply;
    phase = PROBE;
    before = resident_bytes(options.server_pid);
    at_start = open_files(options.server_pid);
    window.server_cpu = cpu_seconds(window.server);
    connect_range(0, options.clients, 64);
    if (options.plain)
        wait_for_accepts();
    wait_until(NULL, 0, options.warmup);
    opened_at = resident_bytes(options.server_pid);
    at_open = open_files(options.server_pid) - at_start;
    if (!options.plain)
        converse();
    wait_until(NULL, 0, options.warmup);
    after = resident_bytes(options.server_pid);
    if (options.ask)
        ask();
    printf("{\"mode\": \"crowd\", \"clients\": %d, \"plain\": %s, \"accepted\": %d, "
           "\"rss_before\": %ld, \"rss_open\": %ld, \"rss_after\": %ld, \"answered\": %d, "
           "\"server\": %s, \"lost\": %" PRIu64 ", \"duplicates\": %" PRIu64
           ", \"corrupt\": %" PRIu64 "}\n",
           options.clients, options.plain ? "true" : "false", at_open, before, opened_at, after,
           answered, answer ? answer : "null", lost, duplicates, corrupt);
    fflush(stdout);
    if (first_failure())
        die(1, "%s", first_failure());
    if (lost + duplicates + corrupt)
        die(1, "%" PRIu64 " lost, %" PRIu64 " duplicates, %" PRIu64 " corrupt", lost, duplicates,
            corrupt);
    return 0;
}
