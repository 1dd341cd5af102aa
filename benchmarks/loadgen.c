/* The load generator of Backchannel's benchmarks: many WebSocket clients in one small process.
 *
 * One thread, epoll, no libraries, so that the server under test is what is measured.
 * `loadgen --help` says what it does; bench.py builds and starts it.
 *
 * A "stream" is what one publisher sends. Every stream keeps at most --inflight messages
 * unfinished; a message is finished when everyone who should have it has it: all clients in
 * fanout mode, its own sender in echo mode. That one difference is all the modes differ in.
 */
#ifndef __linux__
#error "loadgen needs Linux (epoll)"
#endif
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 15000,
    MAX_INFLIGHT = 64, /* `struct progress` remembers what came early in the bits of one word */
    MIN_SIZE = 32,
    MAX_SIZE = 65536,
    STREAM_DIGITS = 4,
    NUMBER_DIGITS = 8,
    TIME_DIGITS = 16,
    ID_DIGITS = STREAM_DIGITS + NUMBER_DIGITS,
    PROBE_STREAM = 0xffff,
    MAX_HEADER = 14,
    MAX_CONTROL = 125,
    READ_BUFFER = 256 * 1024,
    EVENTS = 256,
    CONNECT_SECONDS = 60,
    CLOSE_SECONDS = 3,
    BUCKETS = 64 * 60,
    ENDED = EPOLLRDHUP | EPOLLHUP | EPOLLERR,
};
enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };
enum phase { PROBE, WARM_UP, MEASURE, DRAIN, GOODBYE, OVER };

#define SECOND UINT64_C(1000000000)
#define MAX_MEMORY (UINT64_C(1) << 30)

/* RFC 6455's own example: a fixed key lets the answer be checked without SHA-1. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

static const char USAGE[] =
    "usage: loadgen fanout|echo --port PORT --path PATH [options]\n"
    "\n"
    "  fanout  --clients connections subscribe to the channel behind PATH; the first\n"
    "          --publishers of them send messages, which the server must deliver to all\n"
    "          clients, the sender included\n"
    "  echo    every client sends messages and waits for the server to send each one back\n"
    "\n"
    "  --host HOST        a loopback address, 127.x.y.z or localhost (127.0.0.1)\n"
    "  --port PORT        where the server listens\n"
    "  --path PATH        path of the WebSocket, for example /ws/echo\n"
    "  --clients N        connections, 1-15000 (fanout 1000, echo 100)\n"
    "  --publishers P     how many of the clients send; fanout only, 1-1000 (1)\n"
    "  --inflight K       unfinished messages per sender, 1-64 (1)\n"
    "  --size BYTES       payload of a message, 32-65536 (64)\n"
    "  --warmup SECONDS   load before anything is measured, 0-60 (1)\n"
    "  --seconds SECONDS  length of the measurement, 1-600 (5)\n"
    "  --timeout SECONDS  give up when nothing arrives for so long, 1-60 (10)\n"
    "  --server-pid PID   also report the CPU time of this process during the measurement\n"
    "\n"
    "Latency is from the call that sends a message to the read that has it, for each delivery.\n"
    "Messages of one sender that become due in one read go out in one write.\n"
    "Prints one line of JSON. Exit code: 0 all messages arrived once, in order and intact;\n"
    "1 they did not, or the server failed; 2 wrong arguments.\n";

static struct {
    bool echo;
    const char *host, *path;
    int port, clients, publishers, inflight, size, warmup, seconds, timeout, server_pid;
} options = {.host = "127.0.0.1", .inflight = 1, .size = 64, .warmup = 1, .seconds = 5,
             .timeout = 10};

/* One message on its way. */
struct message {
    uint64_t sent_at;
    uint32_t missing; /* receivers that do not have it yet */
    char *payload;
};

struct stream {
    uint32_t next;   /* number of the next message */
    uint32_t oldest; /* number of the oldest unfinished one; equal to next when none is */
    bool due;        /* has room for new messages and stands in the list of such */
    struct message window[MAX_INFLIGHT];
};

/* What one client has of one stream: all before `next`, and `next + i` for each bit i set. */
struct progress {
    uint32_t next;
    uint64_t early;
};

struct client {
    int fd;
    bool probed;
    struct progress *progress; /* one per stream it hears */
    unsigned char *partial;    /* start of a frame whose rest has not come yet */
    size_t partial_length;
    unsigned char *out; /* what the socket did not take yet is out[sent..end) */
    size_t sent, end, room;
};

static struct client *clients;
static struct stream *streams;
static int *due_streams; /* their numbers */
static int stream_count, due_count, open_count, probed_count, epoll_fd;
static char *probe;

static enum phase phase;
static uint64_t phase_ends, probe_due, last_delivery;
static bool measuring;

static uint64_t deliveries, total_deliveries, latencies[BUCKETS], longest;
static uint64_t lost, duplicates, out_of_order, corrupt, errors;
static char first_error[256];

/* ---- small tools ---- */

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* CPU seconds used so far by a process. */
static double cpu_seconds(clockid_t process)
{
    struct timespec t = {0};
    clock_gettime(process, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

__attribute__((noreturn, format(printf, 2, 3))) static void die(int code, const char *text, ...)
{
    va_list list;
    va_start(list, text);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, text, list);
    fputc('\n', stderr);
    va_end(list);
    exit(code);
}

/* Count an error of the server and end the run: what comes after it would measure nothing. */
__attribute__((format(printf, 1, 2))) static void fail(const char *text, ...)
{
    va_list list;
    va_start(list, text);
    if (!errors++)
        vsnprintf(first_error, sizeof first_error, text, list);
    va_end(list);
    phase = OVER;
}

static void *allocate(size_t count, size_t size)
{
    void *memory = calloc(count, size);
    if (!memory)
        die(1, "out of memory");
    return memory;
}

static void write_hex(char *to, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4)
        to[i] = "0123456789abcdef"[value & 15];
}

/* Returns false on anything that write_hex could not have written. */
static bool read_hex(const unsigned char *from, int digits, uint32_t *value)
{
    uint32_t result = 0;
    for (int i = 0; i < digits; i++) {
        unsigned c = from[i];
        if (c >= '0' && c <= '9')
            c -= '0';
        else if (c >= 'a' && c <= 'f')
            c -= 'a' - 10;
        else
            return false;
        result = result << 4 | c;
    }
    *value = result;
    return true;
}

/* ---- latency: a histogram whose buckets are at most 1/64 of their value wide ---- */

static unsigned bucket_of(uint64_t nanoseconds)
{
    unsigned shift = nanoseconds < 128 ? 0 : 57u - (unsigned)__builtin_clzll(nanoseconds);
    unsigned bucket = shift * 64 + (unsigned)(nanoseconds >> shift);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double middle_of(unsigned bucket)
{
    if (bucket < 128)
        return bucket;
    unsigned shift = bucket / 64 - 1;
    return ((double)(bucket % 64 + 64) + 0.5) * (double)(UINT64_C(1) << shift);
}

static double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)((double)deliveries * share), passed = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        passed += latencies[i];
        if (passed > wanted)
            return (middle_of(i) < (double)longest ? middle_of(i) : (double)longest) / 1000;
    }
    return (double)longest / 1000;
}

/* ---- sending ---- */

static void flush(struct client *c)
{
    while (c->fd >= 0 && c->sent < c->end) {
        ssize_t n = send(c->fd, c->out + c->sent, c->end - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return; /* epoll says when there is room again */
        if (n < 0) {
            if (phase != GOODBYE)
                fail("client %td: send: %s", c - clients, strerror(errno));
            return;
        }
        c->sent += (size_t)n;
    }
    c->sent = c->end = 0;
}

/* Queue one masked frame, as RFC 6455 section 5.3 wants it of clients. */
static void queue_frame(struct client *c, int opcode, const void *payload, size_t length)
{
    static uint32_t noise = 0x9e3779b9;
    noise ^= noise << 13, noise ^= noise >> 17, noise ^= noise << 5;
    unsigned char mask[4], *to = c->out + c->end;
    memcpy(mask, &noise, 4);
    if (c->end + MAX_HEADER + length > c->room) {
        fail("client %td: the server sends pings but does not read the answers", c - clients);
        return;
    }
    *to++ = (unsigned char)(0x80 | opcode);
    if (length < 126) {
        *to++ = (unsigned char)(0x80 | length);
    } else if (length < 65536) {
        *to++ = 0x80 | 126;
        *to++ = (unsigned char)(length >> 8);
        *to++ = (unsigned char)length;
    } else {
        *to++ = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8)
            *to++ = (unsigned char)((uint64_t)length >> shift);
    }
    memcpy(to, mask, 4);
    to += 4;
    for (size_t i = 0; i < length; i++)
        to[i] = ((const unsigned char *)payload)[i] ^ mask[i & 3];
    c->end = (size_t)(to + length - c->out);
}

/* Send as many messages of a stream as its window has room for, in one write. */
static void publish(int index)
{
    struct stream *s = &streams[index];
    struct client *sender = &clients[index];
    if (phase != WARM_UP && phase != MEASURE)
        return;
    while (s->next - s->oldest < (uint32_t)options.inflight) {
        struct message *m = &s->window[s->next % MAX_INFLIGHT];
        m->sent_at = now();
        m->missing = options.echo ? 1 : (uint32_t)options.clients;
        write_hex(m->payload + STREAM_DIGITS, s->next++, NUMBER_DIGITS);
        write_hex(m->payload + ID_DIGITS, m->sent_at, TIME_DIGITS);
        queue_frame(sender, TEXT, m->payload, (size_t)options.size);
    }
    flush(sender);
}

static void publish_due(void)
{
    for (int i = 0; i < due_count; i++) {
        streams[due_streams[i]].due = false;
        publish(due_streams[i]);
    }
    due_count = 0;
}

/* ---- receiving ---- */

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

static void record(const struct message *m, uint64_t at)
{
    last_delivery = at;
    total_deliveries++;
    if (!measuring)
        return;
    uint64_t latency = at - m->sent_at;
    deliveries++;
    latencies[bucket_of(latency)]++;
    if (latency > longest)
        longest = latency;
}

static void on_probe(struct client *c, const unsigned char *payload, size_t length)
{
    if (length != (size_t)options.size || memcmp(payload, probe, length)) {
        corrupt++;
    } else if (!c->probed) {
        c->probed = true;
        probed_count++;
    }
}

static void finish_oldest(struct stream *s)
{
    while (s->oldest != s->next && s->window[s->oldest % MAX_INFLIGHT].missing == 0)
        s->oldest++;
    if (!s->due)
        due_streams[due_count++] = (int)(s - streams);
    s->due = true;
}

static void on_text(struct client *c, const unsigned char *payload, size_t length, uint64_t at)
{
    uint32_t index, number;
    if (length < MIN_SIZE || !read_hex(payload, STREAM_DIGITS, &index) ||
        !read_hex(payload + STREAM_DIGITS, NUMBER_DIGITS, &number)) {
        corrupt++;
        return;
    }
    if (index == PROBE_STREAM) {
        on_probe(c, payload, length);
        return;
    }
    uint32_t own = (uint32_t)(c - clients);
    if (index >= (uint32_t)stream_count || (options.echo && index != own)) {
        corrupt++; /* a message for someone else, or one that nobody sent */
        return;
    }
    struct stream *s = &streams[index];
    if (number - s->oldest >= s->next - s->oldest) {
        /* Not on its way: everyone had it already, or it was never sent. */
        *((int32_t)(number - s->next) < 0 ? &duplicates : &corrupt) += 1;
        return;
    }
    struct message *m = &s->window[number % MAX_INFLIGHT];
    if (length != (size_t)options.size || memcmp(payload, m->payload, length)) {
        corrupt++;
        return;
    }
    if (!advance(&c->progress[options.echo ? 0 : index], number))
        return;
    record(m, at);
    m->missing--;
    if (m->missing == 0 && number == s->oldest)
        finish_oldest(s);
}

static void hang_up(struct client *c)
{
    close(c->fd);
    c->fd = -1;
    open_count--;
}

static void on_close_frame(struct client *c, const unsigned char *payload, size_t length)
{
    if (phase == GOODBYE)
        return; /* the answer to ours; the server hangs up next */
    int code = length < 2 ? 1005 : payload[0] << 8 | payload[1];
    int text = length < 2 ? 0 : (int)length - 2;
    fail("client %td: the server closed the connection with %d \"%.*s\"", c - clients, code, text,
         (const char *)payload + (text ? 2 : 0));
}

static void on_frame(struct client *c, int opcode, const unsigned char *payload, size_t length,
                     uint64_t at)
{
    if (opcode == TEXT)
        on_text(c, payload, length, at);
    else if (opcode == CLOSE)
        on_close_frame(c, payload, length);
    else if (opcode == PING && phase != GOODBYE) {
        queue_frame(c, PONG, payload, length);
        flush(c);
    }
}

/* Returns the header's length, 0 while it is incomplete. */
static size_t read_header(const unsigned char *at, size_t available, size_t *payload)
{
    if (available < 2)
        return 0;
    unsigned short_length = at[1] & 127;
    if (short_length < 126) {
        *payload = short_length;
        return 2;
    }
    size_t bytes = short_length == 126 ? 2 : 8;
    if (available < 2 + bytes)
        return 0;
    uint64_t length = 0;
    for (size_t i = 0; i < bytes; i++)
        length = length << 8 | at[2 + i];
    *payload = length;
    return 2 + bytes;
}

/* What a server that got exactly these messages may send: whole, unmasked, uncompressed. */
static bool acceptable(const struct client *c, const unsigned char *at, size_t length)
{
    int opcode = at[0] & 15;
    bool control = opcode == CLOSE || opcode == PING || opcode == PONG;
    if (!(at[0] & 0x80) || (at[0] & 0x70) || (at[1] & 0x80) || !(control || opcode == TEXT)) {
        fail("client %td: unexpected frame, header %02x %02x (expected a whole text message)",
             c - clients, at[0], at[1]);
        return false;
    }
    size_t limit = control ? MAX_CONTROL : (size_t)options.size;
    if (length > limit) {
        fail("client %td: frame of %zu bytes, at most %zu expected", c - clients, length, limit);
        return false;
    }
    return true;
}

/* Handle all whole frames; returns the number of bytes used. */
static size_t read_frames(struct client *c, const unsigned char *at, size_t available,
                          uint64_t arrived)
{
    size_t used = 0, length;
    while (phase != OVER) {
        size_t header = read_header(at + used, available - used, &length);
        if (!header || !acceptable(c, at + used, length))
            break;
        if (available - used - header < length)
            break;
        on_frame(c, at[used] & 15, at + used + header, length, arrived);
        used += header + length;
    }
    return used;
}

/* Edge-triggered, so read until the kernel has no more. A short read says so without another,
 * but for a connection that ended: there the end itself is still to be read. */
static void on_readable(struct client *c, bool ended)
{
    static unsigned char buffer[READ_BUFFER];
    while (phase != OVER) {
        size_t kept = c->partial_length, room = sizeof buffer - kept;
        ssize_t n = recv(c->fd, buffer + kept, room, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0) {
            if (phase != GOODBYE)
                fail("client %td: %s", c - clients,
                     n ? strerror(errno) : "the server hung up without a close frame");
            hang_up(c);
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

/* ---- connecting ---- */

/* Find a header's value in a response, whatever the case of its name; NULL if it isn't there. */
static const char *header_value(const char *response, const char *name)
{
    size_t length = strlen(name);
    for (const char *line = strstr(response, "\r\n"); line; line = strstr(line + 2, "\r\n")) {
        if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':')
            return line + 3 + length + strspn(line + 3 + length, " \t");
    }
    return NULL;
}

static void check_response(int number, const char *response)
{
    int line = (int)strcspn(response, "\r\n");
    if (strncmp(response, "HTTP/1.1 101", 12))
        die(1, "client %d: the handshake of %s was refused: %.*s", number, options.path, line,
            response);
    const char *accept = header_value(response, "Sec-WebSocket-Accept");
    if (!accept || strncmp(accept, ACCEPT "\r\n", sizeof ACCEPT + 1))
        die(1, "client %d: Sec-WebSocket-Accept is missing or wrong", number);
    if (header_value(response, "Sec-WebSocket-Extensions"))
        die(1, "client %d: the server chose an extension that was not offered", number);
}

/* Read the response's header and not a byte more: frames may follow at once. */
static void read_response(int fd, int number)
{
    char response[4096];
    size_t have = 0;
    while (have < sizeof response - 1) {
        ssize_t n = recv(fd, response + have, sizeof response - 1 - have, MSG_PEEK);
        if (n <= 0)
            die(1, "client %d: no answer to the handshake: %s", number,
                !n ? "the server hung up" : errno == EAGAIN ? "timed out" : strerror(errno));
        response[have + (size_t)n] = 0;
        char *end = strstr(response, "\r\n\r\n");
        size_t take = end ? (size_t)(end + 4 - (response + have)) : (size_t)n;
        if (recv(fd, response + have, take, 0) != (ssize_t)take)
            die(1, "client %d: handshake: %s", number, strerror(errno));
        have += take;
        if (end) {
            response[have] = 0;
            check_response(number, response);
            return;
        }
    }
    die(1, "client %d: the handshake's answer is over 4 KB", number);
}

static int open_socket(int number, const struct sockaddr_in *address)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0)
        die(1, "client %d: socket: %s", number, strerror(errno));
    struct timeval patience = {.tv_sec = options.timeout};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Where the default is bbr, its pacing timers would be a good part of our own work. */
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    if (connect(fd, (const struct sockaddr *)address, sizeof *address))
        die(1, "client %d: connect to %s:%d: %s", number, options.host, options.port,
            strerror(errno));
    return fd;
}

/* One client after the other: 1,000 take a second, and no server's backlog is tested. */
static void connect_client(int number, const struct sockaddr_in *address)
{
    struct client *c = &clients[number];
    char request[1024];
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\n"
                          "Connection: Upgrade\r\nSec-WebSocket-Key: " KEY "\r\n"
                          "Sec-WebSocket-Version: 13\r\n\r\n",
                          options.path, options.host, options.port);
    c->fd = open_socket(number, address);
    if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        die(1, "client %d: handshake: %s", number, strerror(errno));
    read_response(c->fd, number);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = (uint32_t)number};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event))
        die(1, "epoll_ctl: %s", strerror(errno));
    open_count++;
}

static void connect_all(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    uint64_t deadline = now() + CONNECT_SECONDS * SECOND;
    for (int i = 0; i < options.clients; i++) {
        if (now() > deadline)
            die(1, "only %d of %d clients connected in %d s", i, options.clients, CONNECT_SECONDS);
        connect_client(i, &address);
    }
}

/* ---- the run ---- */

static void prepare_client(int number)
{
    struct client *c = &clients[number];
    size_t frame = MAX_HEADER + (size_t)options.size;
    c->partial = allocate(1, frame + MAX_CONTROL);
    c->room = 8 * (MAX_HEADER + MAX_CONTROL);
    if (number < stream_count)
        c->room += (size_t)(options.inflight + 1) * frame;
    c->out = allocate(1, c->room);
    c->progress = allocate(options.echo ? 1 : (size_t)stream_count, sizeof *c->progress);
}

/* All memory is taken here: nothing is allocated under load. */
static void prepare(void)
{
    size_t size = (size_t)options.size;
    stream_count = options.echo ? options.clients : options.publishers;
    clients = allocate((size_t)options.clients, sizeof *clients);
    streams = allocate((size_t)stream_count, sizeof *streams);
    due_streams = allocate((size_t)stream_count, sizeof *due_streams);
    for (int i = 0; i < options.clients; i++)
        prepare_client(i);
    for (int i = 0; i < stream_count; i++) {
        for (int k = 0; k < MAX_INFLIGHT; k++) {
            char *payload = streams[i].window[k].payload = allocate(1, size);
            memset(payload, '.', size);
            write_hex(payload, (uint64_t)i, STREAM_DIGITS);
        }
    }
    probe = allocate(1, size);
    memset(probe, '.', size);
    write_hex(probe, PROBE_STREAM, STREAM_DIGITS);
    write_hex(probe + STREAM_DIGITS, 0, NUMBER_DIGITS);
}

static void enter(enum phase next, uint64_t at, int seconds)
{
    phase = next;
    phase_ends = at + (uint64_t)seconds * SECOND;
    last_delivery = at;
}

static bool all_finished(void)
{
    for (int i = 0; i < stream_count; i++)
        if (streams[i].oldest != streams[i].next)
            return false;
    return true;
}

static void say_goodbye(uint64_t at)
{
    static const unsigned char normal[] = {1000 >> 8, 1000 & 255};
    enter(GOODBYE, at, CLOSE_SECONDS);
    for (int i = 0; i < options.clients; i++) {
        queue_frame(&clients[i], CLOSE, normal, sizeof normal);
        flush(&clients[i]);
    }
}

/* A client may be accepted before it is subscribed: the load starts when all hear the channel. */
static void keep_probing(uint64_t at)
{
    if (probed_count == options.clients) {
        enter(WARM_UP, at, options.warmup);
        for (int i = 0; i < stream_count; i++)
            publish(i);
    } else if (at >= phase_ends) {
        fail("only %d of %d clients hear the channel after %d s", probed_count, options.clients,
             options.timeout);
    } else if (at >= probe_due) {
        probe_due = at + SECOND / 4;
        if (clients[0].end == 0)
            queue_frame(&clients[0], TEXT, probe, (size_t)options.size);
        flush(&clients[0]);
    }
}

static struct {
    clockid_t server;
    uint64_t began, nanoseconds;
    double own_cpu, server_cpu;
} window;

static void begin_measuring(uint64_t at)
{
    enter(MEASURE, at, options.seconds);
    measuring = true;
    window.began = at;
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID);
    window.server_cpu = cpu_seconds(window.server);
}

static void end_measuring(uint64_t at)
{
    enter(DRAIN, at, 0);
    measuring = false;
    window.nanoseconds = at - window.began;
    window.own_cpu = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - window.own_cpu;
    window.server_cpu = cpu_seconds(window.server) - window.server_cpu;
}

static void next_phase(uint64_t at)
{
    bool stalled = at > last_delivery && at - last_delivery > (uint64_t)options.timeout * SECOND;
    if (phase == PROBE)
        keep_probing(at);
    else if (phase == WARM_UP && at >= phase_ends)
        begin_measuring(at);
    else if (phase == MEASURE && at >= phase_ends)
        end_measuring(at);
    else if (phase == DRAIN && all_finished())
        say_goodbye(at);
    else if (phase == GOODBYE && (open_count == 0 || at >= phase_ends))
        phase = OVER;
    else if (phase != GOODBYE && phase != OVER && stalled)
        phase = OVER; /* what is still missing is lost */
}

static void run(void)
{
    struct epoll_event events[EVENTS];
    enter(PROBE, now(), options.timeout);
    if (options.echo)
        probed_count = options.clients;
    while (phase != OVER) {
        next_phase(now());
        int count = phase == OVER ? 0 : epoll_wait(epoll_fd, events, EVENTS, 20);
        for (int i = 0; i < count && phase != OVER; i++) {
            struct client *c = &clients[events[i].data.u32];
            if (c->end)
                flush(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | ENDED))
                on_readable(c, events[i].events & ENDED);
        }
    }
    if (measuring)
        end_measuring(now());
}

/* ---- the result ---- */

static void count_lost(void)
{
    for (int i = 0; i < stream_count; i++)
        for (uint32_t n = streams[i].oldest; n != streams[i].next; n++)
            lost += streams[i].window[n % MAX_INFLIGHT].missing;
}

static int report(void)
{
    double seconds = (double)window.nanoseconds / 1e9;
    const char *noun = options.echo ? "messages" : "deliveries";
    const char *rate = options.echo ? "msgs_per_s" : "deliveries_per_s";
    printf("{\"mode\": \"%s\", \"clients\": %d, \"publishers\": %d, \"inflight\": %d, "
           "\"size\": %d, \"%s\": %" PRIu64 ", \"seconds\": %.4f, \"%s\": %.1f, ",
           options.echo ? "echo" : "fanout", options.clients, stream_count, options.inflight,
           options.size, noun, deliveries, seconds, rate,
           seconds > 0 ? (double)deliveries / seconds : 0);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"total_%s\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"duplicates\": %" PRIu64 ", \"out_of_order\": %" PRIu64
           ", \"corrupt\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"loadgen_cpu_s\": %.4f",
           percentile_us(0.50), percentile_us(0.99), (double)longest / 1000, noun,
           total_deliveries, lost, duplicates, out_of_order, corrupt, errors, window.own_cpu);
    if (options.server_pid)
        printf(", \"server_cpu_s\": %.4f", window.server_cpu);
    puts("}");
    fflush(stdout);
    if (errors)
        die(1, "%s", first_error);
    if (lost + duplicates + out_of_order + corrupt)
        die(1, "%" PRIu64 " lost, %" PRIu64 " duplicates, %" PRIu64 " out of order, %" PRIu64
            " corrupt", lost, duplicates, out_of_order, corrupt);
    if (!deliveries)
        die(1, "nothing was delivered during the measurement");
    return 0;
}

/* ---- arguments ---- */

static int number(const char *name, const char *text, int least, int most)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (errno || end == text || *end || value < least || value > most)
        die(2, "--%s must be a whole number from %d to %d, not \"%s\"", name, least, most, text);
    return (int)value;
}

static const struct option LONG[] = {
    {"help", no_argument, 0, '!'},             {"host", required_argument, 0, 'h'},
    {"port", required_argument, 0, 'p'},       {"path", required_argument, 0, 'u'},
    {"clients", required_argument, 0, 'n'},    {"publishers", required_argument, 0, 'b'},
    {"inflight", required_argument, 0, 'k'},   {"size", required_argument, 0, 's'},
    {"warmup", required_argument, 0, 'w'},     {"seconds", required_argument, 0, 't'},
    {"timeout", required_argument, 0, 'o'},    {"server-pid", required_argument, 0, 'i'},
    {0, 0, 0, 0},
};

static void set_option(int letter, const char *text)
{
    switch (letter) {
    case '!': fputs(USAGE, stdout); exit(0);
    case 'h': options.host = strcmp(text, "localhost") ? text : "127.0.0.1"; break;
    case 'u': options.path = text; break;
    case 'p': options.port = number("port", text, 1, 65535); break;
    case 'n': options.clients = number("clients", text, 1, MAX_CLIENTS); break;
    case 'b': options.publishers = number("publishers", text, 1, 1000); break;
    case 'k': options.inflight = number("inflight", text, 1, MAX_INFLIGHT); break;
    case 's': options.size = number("size", text, MIN_SIZE, MAX_SIZE); break;
    case 'w': options.warmup = number("warmup", text, 0, 60); break;
    case 't': options.seconds = number("seconds", text, 1, 600); break;
    case 'o': options.timeout = number("timeout", text, 1, 60); break;
    case 'i': options.server_pid = number("server-pid", text, 1, 1 << 30); break;
    default: exit(2); /* getopt has said what is wrong */
    }
}

static void check_file_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t wanted = (rlim_t)options.clients + 16;
    if (limit.rlim_cur >= wanted)
        return;
    if (limit.rlim_max < wanted)
        die(2, "%d clients need %d file descriptors; the limit is %d", options.clients,
            (int)wanted, (int)limit.rlim_max);
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void check_options(void)
{
    struct in_addr address;
    if (!options.port || !options.path)
        die(2, "--port and --path are needed; try --help");
    if (inet_pton(AF_INET, options.host, &address) != 1 || ntohl(address.s_addr) >> 24 != 127)
        die(2, "%s is not a loopback address: this tool puts load only on its own machine",
            options.host);
    if (options.path[0] != '/' || strlen(options.path) > 512 || strpbrk(options.path, " \r\n"))
        die(2, "--path must start with / and have no spaces");
    if (options.echo && options.publishers)
        die(2, "--publishers belongs to fanout: in echo mode every client sends");
    if (!options.clients)
        options.clients = options.echo ? 100 : 1000;
    if (!options.publishers)
        options.publishers = 1;
    if (options.publishers > options.clients)
        die(2, "--publishers is more than --clients");
    uint64_t senders = (uint64_t)(options.echo ? options.clients : options.publishers);
    uint64_t memory = ((uint64_t)options.clients + 2 * senders * MAX_INFLIGHT) *
                      (uint64_t)options.size;
    if (memory > MAX_MEMORY)
        die(2, "so many clients with such large messages need over 1 GiB; ask for less");
    if (options.server_pid && clock_getcpuclockid(options.server_pid, &window.server))
        die(2, "there is no process %d to watch", options.server_pid);
    check_file_limit();
}

static void read_arguments(int argc, char **argv)
{
    int letter;
    window.server = CLOCK_PROCESS_CPUTIME_ID;
    if (argc < 2 || !strcmp(argv[1], "--help")) {
        fputs(USAGE, argc < 2 ? stderr : stdout);
        exit(argc < 2 ? 2 : 0);
    }
    options.echo = !strcmp(argv[1], "echo");
    if (!options.echo && strcmp(argv[1], "fanout"))
        die(2, "the mode must be fanout or echo, not \"%s\"; try --help", argv[1]);
    optind = 2;
    while ((letter = getopt_long(argc, argv, "", LONG, NULL)) != -1)
        set_option(letter, optarg);
    if (optind < argc)
        die(2, "\"%s\" is one argument too many; try --help", argv[optind]);
    check_options();
}

static void on_alarm(int signal)
{
    static const char text[] = "loadgen: took far longer than it was asked to; stopped\n";
    (void)signal;
    if (write(2, text, sizeof text - 1) < 0)
        _exit(1);
    _exit(1);
}

int main(int argc, char **argv)
{
    read_arguments(argc, argv);
    signal(SIGALRM, on_alarm);
    alarm((unsigned)(CONNECT_SECONDS + options.warmup + options.seconds + 4 * options.timeout));
    prepare();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    connect_all();
    run();
    count_lost();
    return report();
}
