/* What is sent: messages of publishers, when there is room for them or when their time has come. */
#include "loadgen.h"

struct stream *streams;
int stream_count;

static struct publisher *publishers;
static int publisher_count, due_count, *due;
static uint32_t *members; /* of each channel */
static uint64_t interval, scheduled;
static bool on_schedule;

/* ---- preparing ---- */

/* Choose the channels of one client. */
static void choose_channels(struct client *c)
{
    c->hears = allocate((size_t)options.channels, sizeof *c->hears);
    for (int chosen = 0; chosen < options.per_client;) {
        uint32_t channel = noise() % (uint32_t)options.channels;
        if (c->hears[channel])
            continue;
        c->hears[channel] = true;
        members[channel]++;
        chosen++;
    }
}

static void prepare_payloads(struct stream *s, char *core)
{
    for (int k = 0; k < MAX_INFLIGHT; k++) {
        write_hex(core, (uint64_t)s->channel, ADDRESS_DIGITS);
        write_hex(core + STREAM_AT, (uint64_t)(s - streams), STREAM_DIGITS);
        s->window[k].payload = allocate(1, wrapped_length((size_t)options.size));
        wrap(s->window[k].payload, core, (size_t)options.size);
    }
}

static void prepare_publisher(int number, char *core)
{
    struct publisher *p = &publishers[number];
    p->first = stream_count;
    for (int i = 0; i < options.channels; i++) {
        if (clients[number].hears && !clients[number].hears[i])
            continue;
        struct stream *s = &streams[stream_count++];
        s->publisher = number;
        s->channel = i;
        prepare_payloads(s, core);
        p->count++;
    }
}

void prepare_client(int number)
{
    struct client *c = &clients[number];
    size_t frame = MAX_HEADER + wrapped_length((size_t)options.size);
    c->partial = allocate(1, frame + MAX_CONTROL + MAX_ANSWER);
    c->room = 8 * (MAX_HEADER + MAX_CONTROL);
    if (number < publisher_count)
        c->room += (size_t)(options.inflight + 1) * frame;
    if (number == 0)
        c->room += (size_t)options.channels * frame; /* the probes */
    c->out = allocate(1, c->room);
    c->unprobed = options.per_client;
    size_t heard = options.mode == FANOUT ? (size_t)stream_count : 1;
    c->progress = allocate(heard, sizeof *c->progress);
}

/* All memory is taken here: nothing is allocated under load. */
void prepare_streams(void)
{
    char *core = allocate(1, (size_t)options.size + 1);
    memset(core, '.', (size_t)options.size);
    publisher_count = options.mode == ECHO ? options.clients
                      : options.mode == TARGET ? 1 : options.publishers;
    publishers = allocate((size_t)publisher_count, sizeof *publishers);
    due = allocate((size_t)publisher_count, sizeof *due);
    members = allocate((size_t)options.channels, sizeof *members);
    streams = allocate((size_t)(publisher_count * options.per_client), sizeof *streams);
    for (int i = 0; options.channels > 1 && i < options.clients; i++)
        choose_channels(&clients[i]);
    if (options.channels == 1)
        members[0] = (uint32_t)options.clients;
    for (int i = 0; i < publisher_count; i++)
        prepare_publisher(i, core);
    for (int i = 0; i < options.clients; i++)
        prepare_client(i);
    free(core);
    unprobed_clients = options.mode == FANOUT ? options.clients : 0;
    if (options.rate)
        interval = SECOND * (uint64_t)options.clients / (uint64_t)options.rate;
}

/* A client may be accepted before it is subscribed: the load starts when all hear their channels.
 * One probe goes to each channel. */
void send_probes(void)
{
    struct client *c = &clients[0];
    char *core = allocate(1, (size_t)options.size);
    char *payload = allocate(1, wrapped_length((size_t)options.size));
    memset(core, '.', (size_t)options.size);
    write_hex(core + STREAM_AT, PROBE_STREAM, STREAM_DIGITS);
    for (int i = 0; c->end == 0 && i < options.channels; i++) {
        write_hex(core, (uint64_t)i, ADDRESS_DIGITS);
        queue_frame(c, TEXT, payload, wrap(payload, core, (size_t)options.size));
        flush(c);
    }
    free(core);
    free(payload);
}

/* ---- sending ---- */

static void queue_message(struct publisher *p, struct client *sender, uint64_t at)
{
    struct stream *s = &streams[p->first + p->turn];
    struct message *m = &s->window[s->next % MAX_INFLIGHT];
    char *core = m->payload + prefix_length();
    p->turn = (p->turn + 1) % p->count;
    p->unfinished++;
    m->sent_at = at;
    m->missing = options.mode == FANOUT ? members[s->channel] : 1;
    if (options.mode == TARGET) {
        m->receiver = noise() % (uint32_t)options.clients;
        write_hex(core, m->receiver, ADDRESS_DIGITS);
    }
    write_hex(core + NUMBER_AT, s->next++, NUMBER_DIGITS);
    write_hex(core + TIME_AT, at, TIME_DIGITS);
    queue_frame(sender, TEXT, m->payload, wrapped_length((size_t)options.size));
}

/* Send as many messages of a publisher as its window has room for, in one write. */
void publish(int number)
{
    struct publisher *p = &publishers[number];
    if (on_schedule || (phase != WARM_UP && phase != MEASURE))
        return;
    while (p->unfinished < (uint32_t)options.inflight)
        queue_message(p, &clients[number], now());
    flush(&clients[number]);
}

void publish_due(void)
{
    for (int i = 0; i < due_count; i++) {
        publishers[due[i]].due = false;
        publish(due[i]);
    }
    due_count = 0;
}

/* The load begins: everyone sends, or the first one sends by the clock. */
void start_schedule(uint64_t at)
{
    on_schedule = options.rate;
    scheduled = at + interval;
    for (int i = 0; i < publisher_count; i++)
        publish(i);
}

/* When the next message shall be sent; "never" is far away. */
uint64_t next_scheduled(void)
{
    bool sending = on_schedule && (phase == WARM_UP || phase == MEASURE);
    return sending && publishers[0].unfinished < MAX_INFLIGHT ? scheduled : UINT64_MAX;
}

/* A message counts as sent at the time it should have been: one that had to wait, since the
 * server was behind, has waited for the server. */
void publish_scheduled(uint64_t at)
{
    for (; next_scheduled() <= at; scheduled += interval) {
        queue_message(&publishers[0], &clients[0], scheduled);
        flush(&clients[0]);
    }
}

/* ---- finishing ---- */

void finish_oldest(struct stream *s)
{
    struct publisher *p = &publishers[s->publisher];
    while (s->oldest != s->next && s->window[s->oldest % MAX_INFLIGHT].missing == 0) {
        s->oldest++;
        p->unfinished--;
    }
    if (!p->due)
        due[due_count++] = s->publisher;
    p->due = true;
}

bool all_finished(void)
{
    for (int i = 0; i < stream_count; i++)
        if (streams[i].oldest != streams[i].next)
            return false;
    return true;
}
