/* The limit: the least that a server can do, in C.
 *
 * One thread, epoll, no allocation under load, no checks that the load generator doesn't need:
 * what remains is the kernel's work. In two forms:
 *
 *   limit send PORT       one send(2) for each delivery, at once
 *   limit coalesce PORT   what one turn of the loop has for a client goes out in one send(2)
 *
 * /ws/fanout/... is one channel; /ws/multi?channels=0001,0a3f subscribes to those, and a message
 * there begins with the name of the channel it is for; everything else sends messages back.
 * Only what loadgen sends is understood: its one handshake key, whole text frames under 64 KiB.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHANNELS = 65537, SINGLE = 65536, EVENTS = 512, BUFFER = 1 << 18, FILES = 20000 };
enum { HANDSHAKE, ECHO, FANOUT, MULTI };
enum { TEXT = 1, CLOSE = 8 };

static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ANSWER[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

struct bytes {
    unsigned char *data;
    size_t length, room;
};

struct client {
    int fd, kind, channel_count;
    uint32_t events;
    bool dirty;          /* stands in the list of those that something waits for */
    uint16_t *channels;  /* MULTI: names */
    struct bytes in;     /* start of a frame whose rest has not come yet */
    struct bytes out;    /* what waits for the end of the turn, or for the socket */
};

static struct channel {
    struct client **members;
    int count, room;
    struct bytes pending; /* of this turn; only where the members have no other channel */
} channels[CHANNELS];

static bool coalesce;
static int epoll_fd, dirty_count, dirty_room;
static struct client **dirty;

static void append(struct bytes *b, const void *data, size_t length)
{
    if (b->length + length > b->room) {
        b->room = 2 * (b->length + length);
        b->data = realloc(b->data, b->room);
        if (!b->data)
            abort();
    }
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static void watch(struct client *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (c->events != events)
        epoll_ctl(epoll_fd, c->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, c->fd, &event);
    c->events = events;
}

/* ---- sending ---- */

/* Send now; what the socket does not take waits until it has room. */
static void transmit(struct client *c, const unsigned char *data, size_t length)
{
    ssize_t n = c->out.length || c->fd < 0 ? 0 : send(c->fd, data, length, MSG_NOSIGNAL);
    if (n == (ssize_t)length || c->fd < 0)
        return;
    n = n < 0 ? 0 : n;
    append(&c->out, data + n, length - (size_t)n);
    watch(c, EPOLLIN | EPOLLOUT);
}

static void flush(struct client *c)
{
    struct bytes out = c->out;
    c->out = (struct bytes){0};
    transmit(c, out.data, out.length);
    if (c->out.length) {
        free(out.data);
        return;
    }
    out.length = 0;
    c->out = out;
    if (c->events)
        watch(c, EPOLLIN);
}

/* Keep for the end of the turn. */
static void keep(struct client *c, const unsigned char *frame, size_t length)
{
    append(&c->out, frame, length);
    if (c->dirty)
        return;
    if (dirty_count == dirty_room) {
        dirty_room = 2 * dirty_room + 1024;
        dirty = realloc(dirty, (size_t)dirty_room * sizeof *dirty);
    }
    dirty[dirty_count++] = c;
    c->dirty = true;
}

static void end_turn(void)
{
    struct channel *single = &channels[SINGLE];
    for (int i = 0; single->pending.length && i < single->count; i++)
        transmit(single->members[i], single->pending.data, single->pending.length);
    single->pending.length = 0;
    for (int i = 0; i < dirty_count; i++) {
        dirty[i]->dirty = false;
        flush(dirty[i]);
    }
    dirty_count = 0;
}

static void deliver(struct client *sender, int name, const unsigned char *frame, size_t length)
{
    struct channel *channel = &channels[name];
    if (sender->kind == ECHO && coalesce)
        keep(sender, frame, length);
    else if (sender->kind == ECHO)
        transmit(sender, frame, length);
    else if (coalesce && name == SINGLE)
        append(&channel->pending, frame, length);
    else
        for (int i = 0; i < channel->count; i++)
            (coalesce ? keep : transmit)(channel->members[i], frame, length);
}

/* ---- receiving ---- */

static void join(struct client *c, int name)
{
    struct channel *channel = &channels[name];
    if (channel->count == channel->room) {
        channel->room = 2 * channel->room + 16;
        channel->members = realloc(channel->members, (size_t)channel->room * sizeof c);
    }
    channel->members[channel->count++] = c;
    c->channels = realloc(c->channels, (size_t)(c->channel_count + 1) * sizeof *c->channels);
    c->channels[c->channel_count++] = (uint16_t)name;
}

static void leave(struct client *c, struct channel *channel)
{
    for (int i = 0; i < channel->count; i++) {
        if (channel->members[i] == c) {
            channel->members[i] = channel->members[--channel->count];
            return;
        }
    }
}

static void hang_up(struct client *c)
{
    for (int i = 0; i < c->channel_count; i++)
        leave(c, &channels[c->kind == FANOUT ? SINGLE : c->channels[i]]);
    close(c->fd);
    c->fd = -1; /* the struct stays: this turn may still have events for it */
    c->out.length = 0;
    free(c->in.data);
    c->in = (struct bytes){0};
}

/* Returns the number of bytes used, 0 while the request is incomplete. */
static size_t shake_hands(struct client *c, const char *request, size_t available)
{
    const char *end = memmem(request, available, "\r\n\r\n", 4);
    if (!end)
        return 0;
    size_t length = (size_t)(end + 4 - request);
    if (!memmem(request, length, KEY, sizeof KEY - 1)) {
        hang_up(c);
        return 0;
    }
    c->kind = ECHO;
    if (!strncmp(request, "GET /ws/fanout/", 15)) {
        c->kind = FANOUT;
        join(c, SINGLE);
    } else if (!strncmp(request, "GET /ws/multi?channels=", 23)) {
        c->kind = MULTI;
        for (const char *at = request + 22; *at == '=' || *at == ','; at += 5)
            join(c, (int)strtol(at + 1, NULL, 16));
    }
    transmit(c, (const unsigned char *)ANSWER, sizeof ANSWER - 1);
    return length;
}

static void on_frame(struct client *c, int opcode, const unsigned char *mask,
                     const unsigned char *payload, size_t length)
{
    static unsigned char frame[4 + 65536];
    size_t header = length < 126 ? 2 : 4;
    frame[0] = (unsigned char)(0x80 | opcode);
    frame[1] = (unsigned char)(length < 126 ? length : 126);
    frame[2] = (unsigned char)(length >> 8); /* overwritten where the length is short */
    frame[3] = (unsigned char)length;
    uint32_t mask4;
    memcpy(&mask4, mask, 4);
    uint64_t mask8 = (uint64_t)mask4 << 32 | mask4, word;
    size_t i = 0;
    for (; i + 8 <= length; i += 8) {
        memcpy(&word, payload + i, 8);
        word ^= mask8;
        memcpy(frame + header + i, &word, 8);
    }
    for (; i < length; i++)
        frame[header + i] = payload[i] ^ mask[i & 3];
    if (opcode == CLOSE) {
        transmit(c, frame, header + length);
        hang_up(c);
    } else if (opcode == TEXT) {
        char name[5] = {0};
        if (c->kind == MULTI)
            memcpy(name, frame + header, 4);
        deliver(c, c->kind == MULTI ? (int)strtol(name, NULL, 16) : SINGLE, frame,
                header + length);
    }
}

/* Returns the number of bytes used, 0 while the frame is incomplete. */
static size_t read_frame(struct client *c, const unsigned char *at, size_t available)
{
    size_t header = 6;
    if (available < 6)
        return 0;
    size_t length = at[1] & 127;
    if (length == 126) {
        length = (size_t)at[2] << 8 | at[3];
        header = 8;
    } else if (length == 127) {
        hang_up(c);
        return 0;
    }
    if (available < header + length)
        return 0;
    on_frame(c, at[0] & 15, at + header - 4, at + header, length);
    return header + length;
}

static void on_readable(struct client *c)
{
    static unsigned char buffer[BUFFER];
    size_t kept = c->in.length, used = 0, step = 1;
    ssize_t n = recv(c->fd, buffer + kept, sizeof buffer - kept, 0);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            hang_up(c);
        return;
    }
    if (kept)
        memcpy(buffer, c->in.data, kept);
    size_t available = kept + (size_t)n;
    while (used < available && step && c->fd >= 0) {
        step = c->kind == HANDSHAKE ? shake_hands(c, (char *)buffer + used, available - used)
                                    : read_frame(c, buffer + used, available - used);
        used += step;
    }
    c->in.length = 0;
    if (c->fd >= 0 && used < available)
        append(&c->in, buffer + used, available - used);
}

/* ---- the loop ---- */

static void accept_all(int listener)
{
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct client *c = calloc(1, sizeof *c);
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        watch(c, EPOLLIN);
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("limit: listen");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.ptr = NULL};
    struct rlimit files = {FILES, FILES};
    if (argc != 3 || (strcmp(argv[1], "send") && strcmp(argv[1], "coalesce"))) {
        fputs("usage: limit send|coalesce PORT\n", stderr);
        return 2;
    }
    coalesce = !strcmp(argv[1], "coalesce");
    setrlimit(RLIMIT_NOFILE, &files);
    int listener = listen_on(atoi(argv[2]));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (!c)
                accept_all(listener);
            else if (c->fd >= 0 && events[i].events & EPOLLOUT)
                flush(c);
            if (c && c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                on_readable(c);
        }
        end_turn();
    }
}
