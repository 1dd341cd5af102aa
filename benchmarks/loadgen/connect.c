/* Handshakes without waiting, and the reading of connections that hardly ever hear anything.
 *
 * Both look at what came (MSG_PEEK) and take whole things only, so that they keep no memory for a
 * connection: the kernel keeps what is incomplete.
 */
#include "loadgen.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <strings.h>

/* RFC 6455's own example: a fixed key lets the answer be checked without SHA-1. */
#define KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define V1 "backchannel.v1.json"
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
/* What Chrome sends beside. */
#define BROWSER \
    "Pragma: no-cache\r\nCache-Control: no-cache\r\n" \
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) " \
    "Chrome/131.0.0.0 Safari/537.36\r\n" \
    "Origin: http://%s:%d\r\n" \
    "Accept-Encoding: gzip, deflate, br, zstd\r\n" \
    "Accept-Language: en-GB,en;q=0.9,de-DE;q=0.8,de;q=0.7\r\n" \
    "Cookie: user=%04x; theme=dark; consent=necessary; " \
    "session=.eJwlzjsOwjAMANC7ZGawHcd2epkqv4jOLZ0Qd6cS83vD5-bY07kc23vez9tyvAdsS0zIZtrA3LGq1Y" \
    ".Z0F3Lg.%08x\r\n"

void (*on_opened)(struct client *c);
void (*on_text_frame)(struct client *c, const unsigned char *payload, size_t length);
void (*on_ended)(struct client *c);
int opened_count;

static unsigned char peeked[MAX_SIZE + MAX_HEADER + MAX_WRAP];

/* ---- the request ---- */

/* Put the number of the client's room for `{n}`, its channels for `{channels}`. */
static void write_path(char *to, size_t room, int number)
{
    const char *from = number < options.clients ? options.path : options.extra_path;
    const char *brace = strchr(from, '{');
    int before = brace ? (int)(brace - from) : (int)strlen(from), used;
    const char *start = options.socketio ? "/socket.io/?EIO=4&transport=websocket&path=" : "";
    used = snprintf(to, room, "%s%.*s", start, before, from);
    if (!brace)
        return;
    if (!strncmp(brace, "{n}", 3)) {
        snprintf(to + used, room - (size_t)used, "%d%s",
                 number % (options.rooms ? options.rooms : MAX_CLIENTS), brace + 3);
        return;
    }
    const char *comma = "";
    for (int i = 0; i < options.channels; i++) {
        if (!clients[number].hears || !clients[number].hears[i])
            continue;
        used += snprintf(to + used, room - (size_t)used, "%s%04x", comma, (unsigned)i);
        comma = ",";
    }
}

static void send_request(struct client *c)
{
    int number = (int)(c - clients);
    char path[1024], browser[1024] = "", request[2560];
    write_path(path, sizeof path, number);
    if (options.browser)
        snprintf(browser, sizeof browser, BROWSER, options.host, options.port, (unsigned)number,
                 (unsigned)number);
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: Upgrade\r\n%s"
                          "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n%s"
                          "Sec-WebSocket-Key: " KEY "\r\n\r\n",
                          path, options.host, options.port, browser,
                          options.v1 ? "Sec-WebSocket-Protocol: " V1 "\r\n" : "");
    if (send(c->fd, request, (size_t)length, MSG_NOSIGNAL) != length)
        die(1, "client %d: handshake: %s", number, strerror(errno));
    c->state = ASKED;
}

/* ---- connecting ---- */

static void configure(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    /* Where the default is bbr, its pacing timers would be a good part of our own work. */
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    if (options.mode != HANDSHAKES)
        return;
    /* So many connections one after the other need more ports than one address has. */
    static uint32_t turn;
    struct sockaddr_in own = {.sin_family = AF_INET,
                              .sin_addr.s_addr = htonl(0x7f000101 + turn++ % 32)};
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&own, sizeof own))
        die(1, "bind: %s", strerror(errno));
}

void start_connecting(int number)
{
    struct client *c = &clients[number];
    bool other = options.other_port && number >= (options.clients + 1) / 2;
    int port = other ? options.other_port : options.port;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, options.host, &address.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->fd < 0)
        die(1, "client %d: socket: %s", number, strerror(errno));
    configure(c->fd);
    c->began = now();
    c->state = CONNECTING;
    open_count++;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die(1, "client %d: connect to %s:%d: %s", number, options.host, port, strerror(errno));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u32 = (uint32_t)number};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event))
        die(1, "epoll_ctl: %s", strerror(errno));
}

static void on_connected(struct client *c)
{
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error)
        die(1, "client %td: connect to %s:%d: %s", c - clients, options.host, options.port,
            strerror(error));
    if (!options.plain) {
        send_request(c);
        return;
    }
    c->state = OPEN;
    opened_count++;
}

/* Look at what came without taking it; 0 when there is nothing. */
static size_t peek(struct client *c)
{
    ssize_t n = recv(c->fd, peeked, sizeof peeked - 1, MSG_PEEK);
    if (n > 0) {
        peeked[n] = 0;
        return (size_t)n;
    }
    if (n < 0 && errno == EAGAIN)
        return 0;
    if (c->state < OPEN)
        die(1, "client %td: no answer to the handshake: %s", c - clients,
            n ? strerror(errno) : "the server hung up");
    if (c->state != LEAVING && phase != GOODBYE)
        fail("client %td: %s", c - clients,
             n ? strerror(errno) : "the server hung up without a close frame");
    hang_up(c);
    if (on_ended)
        on_ended(c);
    return 0;
}

static void take(struct client *c, size_t length)
{
    if (recv(c->fd, peeked, length, 0) != (ssize_t)length)
        die(1, "client %td: what was there is gone: %s", c - clients, strerror(errno));
}

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

static void check_response(const struct client *c, const char *response)
{
    int line = (int)strcspn(response, "\r\n");
    if (strncmp(response, "HTTP/1.1 101", 12))
        die(1, "client %td: the handshake was refused: %.*s", c - clients, line, response);
    const char *accept = header_value(response, "Sec-WebSocket-Accept");
    if (!accept || strncmp(accept, ACCEPT "\r\n", sizeof ACCEPT + 1))
        die(1, "client %td: Sec-WebSocket-Accept is missing or wrong", c - clients);
    if (header_value(response, "Sec-WebSocket-Extensions"))
        die(1, "client %td: the server chose an extension that was not offered", c - clients);
}

static void become_open(struct client *c)
{
    c->state = OPEN;
    opened_count++;
    if (on_opened)
        on_opened(c);
}

/* Take the response's header and not a byte more: frames may follow at once. */
static void take_response(struct client *c)
{
    size_t have = peek(c);
    char *response = (char *)peeked, *end = have ? strstr(response, "\r\n\r\n") : NULL;
    if (!end) {
        if (have > 8192)
            die(1, "client %td: the handshake's answer is over 8 KB", c - clients);
        return;
    }
    end[4] = 0;
    check_response(c, response);
    take(c, (size_t)(end + 4 - response));
    if (options.v1)
        send_now(c, TEXT, "{\"type\":\"hello\"}", 16);
    if (options.socketio || options.v1)
        c->state = GREETED;
    else
        become_open(c);
}

/* ---- frames ---- */

/* A small frame to someone who has no output buffer. */
void send_now(struct client *c, int opcode, const void *payload, size_t length)
{
    static unsigned char frame[MAX_HEADER + MAX_SIZE + MAX_WRAP];
    size_t whole = write_frame(frame, opcode, payload, length);
    if (send(c->fd, frame, whole, MSG_NOSIGNAL) != (ssize_t)whole)
        fail("client %td: send: %s", c - clients, strerror(errno));
}

static bool begins(const unsigned char *payload, size_t length, const char *start)
{
    return length >= strlen(start) && !memcmp(payload, start, strlen(start));
}

/* The server's hello answers ours, and names the channel that the path leads into, where it does: the
 * client is in it when it was told `subscribed`. */
static void greet_v1(struct client *c, const unsigned char *payload, size_t length)
{
    static const char nowhere[] = "\"channels\":[]", somewhere[] = "\"channels\":[\"";
    bool is_hello = c->state == GREETED && begins(payload, length, "{\"type\":\"hello\"");
    if (is_hello && memmem(payload, length, somewhere, sizeof somewhere - 1))
        c->state = JOINED;
    else if (is_hello && memmem(payload, length, nowhere, sizeof nowhere - 1))
        become_open(c);
    else if (c->state == JOINED && begins(payload, length, "{\"type\":\"subscribed\""))
        become_open(c);
    else
        die(1, "client %td: unexpected frame \"%.*s\"", c - clients,
            (int)(length < 60 ? length : 60), (const char *)payload);
}

/* Engine.IO says `0{...}`, is asked to open the namespace with `40` and answers `40{...}`. */
static void greet(struct client *c, const unsigned char *payload, size_t length)
{
    if (options.v1)
        greet_v1(c, payload, length);
    else if (c->state == GREETED && length && payload[0] == '0') {
        send_now(c, TEXT, "40", 2);
        c->state = JOINED;
    } else if (c->state == JOINED && length > 1 && !memcmp(payload, "40", 2)) {
        become_open(c);
    } else {
        die(1, "client %td: unexpected packet \"%.*s\"", c - clients,
            (int)(length < 40 ? length : 40), (const char *)payload);
    }
}

static void take_frame(struct client *c, int opcode, const unsigned char *payload, size_t length)
{
    if (opcode == PING)
        send_now(c, PONG, payload, length);
    else if (opcode == CLOSE && c->state != LEAVING)
        refuse_close(c, payload, length);
    else if (opcode != TEXT)
        return;
    else if (c->state < OPEN)
        greet(c, payload, length);
    else if (options.socketio && length == 1 && payload[0] == '2')
        send_now(c, TEXT, "3", 1);
    else if (on_text_frame)
        on_text_frame(c, payload, length);
}

static bool take_frames(struct client *c)
{
    size_t have = peek(c), length, header = have ? read_header(peeked, have, &length) : 0;
    if (!header || !acceptable(c, peeked, length, MAX_SIZE) || have < header + length)
        return false;
    take(c, header + length);
    take_frame(c, peeked[0] & 15, peeked + header, length);
    return phase != OVER;
}

/* The server's part of the close handshake is to hang up. */
void expect_hangup(struct client *c)
{
    static const unsigned char normal[] = {1000 >> 8, 1000 & 255};
    send_now(c, CLOSE, normal, sizeof normal);
    c->state = LEAVING;
}

void on_events(struct client *c, uint32_t events)
{
    if (c->state == CONNECTING && events & (EPOLLOUT | ENDED))
        on_connected(c);
    if (c->state == ASKED && events & (EPOLLIN | ENDED))
        take_response(c);
    while ((c->state == GREETED || c->state == JOINED) && take_frames(c))
        ;
    if (c->state < OPEN)
        return;
    if (c->out && c->end)
        flush(c);
    if (!(events & (EPOLLIN | ENDED)))
        return;
    if (c->out)
        on_readable(c, events & ENDED);
    else
        while (c->fd >= 0 && take_frames(c))
            ;
}

void handle_events(struct timespec patience)
{
    struct epoll_event events[EVENTS];
    int count = epoll_pwait2(epoll_fd, events, EVENTS, &patience, NULL);
    for (int i = 0; i < count && phase != OVER; i++) {
        struct client *c = &clients[events[i].data.u32];
        if (c->fd >= 0)
            on_events(c, events[i].events);
    }
}

/* Open connections, so many at a time: no server's backlog is tested here. */
void connect_range(int first, int count, int pending)
{
    int started = 0, goal = opened_count + count, before = opened_count, seen = before;
    uint64_t began = now(), deadline = began + CONNECT_SECONDS * SECOND, progress = began;
    while (opened_count < goal) {
        while (started < count && started - (opened_count - before) < pending)
            start_connecting(first + started++);
        handle_events((struct timespec){.tv_nsec = 20000000});
        if (opened_count != seen) {
            seen = opened_count;
            progress = now();
        }
        if (phase == OVER || now() > deadline ||
            now() > progress + (uint64_t)options.timeout * SECOND)
            die(1, "only %d of %d clients connected in %.0f s%s%s", opened_count - before, count,
                (double)(now() - began) / SECOND, first_failure() ? ": " : "",
                first_failure() ? first_failure() : "");
    }
}
