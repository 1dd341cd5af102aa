/* What arrives at those that take part: every delivery is checked and counted. */
#include "loadgen.h"

uint64_t last_delivery, deliveries, total_deliveries, lost, duplicates, out_of_order, corrupt;
int unprobed_clients;
bool measuring;
char *answer;

/* Note that a client has a message; false if it had it before. */
static bool advance(struct progress *p, uint32_t number)
{
    uint32_t ahead = number - p->next;
    if (ahead >= MAX_INFLIGHT || (p->early >> ahead & 1)) {
        duplicates++;
        return false;
    }
    if (ahead) {
        out_of_order++;
        p->early |= UINT64_C(1) << ahead;
        return true;
    }
    do {
        p->next++;
        p->early >>= 1;
    } while (p->early & 1);
    return true;
}

/* By the clock, the latency of all that was due in the measured time counts, even if it comes
 * later: a server that stands still at the end is not spared. */
static bool is_timed(const struct message *m)
{
    if (!options.rate)
        return measuring;
    return window.began && m->sent_at >= window.began &&
           (measuring || m->sent_at < window.began + window.nanoseconds);
}

static void record(const struct message *m, uint64_t at)
{
    last_delivery = at;
    total_deliveries++;
    deliveries += measuring;
    if (is_timed(m))
        note_latency(at > m->sent_at ? at - m->sent_at : 0);
}

/* Each probe names a channel; a client that has one of each of its channels is in all of them. */
static void on_probe(struct client *c, const unsigned char *core, size_t size)
{
    uint32_t channel;
    if (size != (size_t)options.size || !read_hex(core, ADDRESS_DIGITS, &channel) ||
        channel >= (uint32_t)options.channels || (c->hears && !c->hears[channel])) {
        corrupt++;
        return;
    }
    static uint64_t *seen; /* they come again and again: one bit for each client and channel */
    if (!seen)
        seen = allocate((size_t)options.clients * (MAX_CHANNELS / 64), sizeof *seen);
    uint64_t *word = &seen[(c - clients) * (MAX_CHANNELS / 64) + channel / 64];
    if (*word >> channel % 64 & 1)
        return;
    *word |= UINT64_C(1) << channel % 64;
    if (--c->unprobed == 0)
        unprobed_clients--;
}

static bool is_for(const struct client *c, const struct stream *s)
{
    if (options.mode == ECHO)
        return s->publisher == (int)(c - clients);
    return options.mode == TARGET || !c->hears || c->hears[s->channel];
}

/* Returns the stream's message, NULL (and counts the fault) if the client should not have it. */
static struct message *find_message(struct client *c, const unsigned char *core, size_t length,
                                    struct stream **stream, uint32_t *number)
{
    uint32_t index;
    if (!read_hex(core + STREAM_AT, STREAM_DIGITS, &index) || index >= (uint32_t)stream_count ||
        !read_hex(core + NUMBER_AT, NUMBER_DIGITS, number) || !is_for(c, &streams[index])) {
        corrupt++; /* not a message, one that nobody sent, or one for someone else */
        return NULL;
    }
    struct stream *s = *stream = &streams[index];
    if (*number - s->oldest >= s->next - s->oldest) {
        /* Not on its way: everyone had it already, or it was never sent. */
        *((int32_t)(*number - s->next) < 0 ? &duplicates : &corrupt) += 1;
        return NULL;
    }
    struct message *m = &s->window[*number % MAX_INFLIGHT];
    if (!is_heard(core - heard_prefix_length(), length, m->payload + prefix_length(),
                  (size_t)options.size) ||
        (options.mode == TARGET && m->receiver != (uint32_t)(c - clients))) {
        corrupt++;
        return NULL;
    }
    return m;
}

static void on_text(struct client *c, const unsigned char *payload, size_t length, uint64_t at)
{
    uint32_t index, number;
    struct stream *s;
    if (phase == ASK && c == clients && !answer) {
        answer = allocate(1, length + 1);
        memcpy(answer, payload, length);
        return;
    }
    if (options.socketio && length == 1 && payload[0] == '2') {
        queue_frame(c, TEXT, "3", 1);
        flush(c);
        return;
    }
    const unsigned char *core = payload + heard_prefix_length();
    if (length < heard_length(MIN_SIZE)) {
        corrupt++;
        return;
    }
    if (read_hex(core + STREAM_AT, STREAM_DIGITS, &index) && index == PROBE_STREAM) {
        on_probe(c, core, length - (heard_length(0)));
        return;
    }
    struct message *m = find_message(c, core, length, &s, &number);
    if (!m)
        return;
    if (options.mode != TARGET &&
        !advance(&c->progress[options.mode == ECHO ? 0 : s - streams], number))
        return;
    record(m, at);
    m->missing--;
    if (m->missing == 0 && number == s->oldest)
        finish_oldest(s);
}

static void on_frame(struct client *c, int opcode, const unsigned char *payload, size_t length,
                     uint64_t at)
{
    if (opcode == TEXT)
        on_text(c, payload, length, at);
    else if (opcode == CLOSE && phase != GOODBYE)
        refuse_close(c, payload, length); /* in GOODBYE it is the answer to ours */
    else if (opcode == PING && phase != GOODBYE) {
        queue_frame(c, PONG, payload, length);
        flush(c);
    }
}

/* Handle all whole frames; returns the number of bytes used. */
static size_t read_frames(struct client *c, const unsigned char *at, size_t available,
                          uint64_t arrived)
{
    size_t used = 0, length, limit = heard_length((size_t)options.size);
    if (phase == ASK)
        limit = limit < MAX_ANSWER ? MAX_ANSWER : limit;
    while (phase != OVER) {
        size_t header = read_header(at + used, available - used, &length);
        if (!header || !acceptable(c, at + used, length, limit))
            break;
        if (available - used - header < length)
            break;
        on_frame(c, at[used] & 15, at + used + header, length, arrived);
        used += header + length;
    }
    return used;
}

static void on_end(struct client *c, ssize_t n)
{
    if (phase != GOODBYE)
        fail("client %td: %s", c - clients,
             n ? strerror(errno) : "the server hung up without a close frame");
    hang_up(c);
}

/* Edge-triggered, so read until the kernel has no more. A short read says so without another,
 * but for a connection that ended: there the end itself is still to be read. */
void on_readable(struct client *c, bool ended)
{
    static unsigned char buffer[READ_BUFFER];
    while (phase != OVER) {
        size_t kept = c->partial_length, room = sizeof buffer - kept;
        ssize_t n = recv(c->fd, buffer + kept, room, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            on_end(c, n);
            return;
        }
        memcpy(buffer, c->partial, kept);
        size_t available = kept + (size_t)n;
        size_t used = read_frames(c, buffer, available, now());
        if (phase == OVER)
            return;
        c->partial_length = available - used;
        memcpy(c->partial, buffer + used, c->partial_length);
        publish_due();
        if ((size_t)n < room && !ended)
            return;
    }
}
