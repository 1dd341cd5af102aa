/* Frames of RFC 6455, and what a dialect puts around a message inside them. */
#include "loadgen.h"

/* The message stands in a JSON string of compact JSON, so that a server that parses it and writes
 * it again gives back the same bytes. */
static const char *prefix(void)
{
    if (options.v1)
        return "{\"type\":\"message\",\"data\":\"";
    return options.socketio ? "42[\"m\",\"" : options.json ? "{\"user\":\"ana\",\"text\":\"" : "";
}

static const char *suffix(void)
{
    return options.socketio ? "\"]" : options.json || options.v1 ? "\"}" : "";
}

/* What stands around a message that comes: elsewhere the same. */
static const char *heard_prefix(void)
{
    if (!options.v1 || options.mode == ECHO)
        return prefix();
    return "{\"type\":\"publication\",\"channel\":\"bench\",\"data\":\"";
}

size_t heard_prefix_length(void)
{
    return strlen(heard_prefix());
}

size_t heard_length(size_t core)
{
    return strlen(heard_prefix()) + core + strlen(suffix());
}

/* Tell whether a payload is this message, as it comes. */
bool is_heard(const unsigned char *payload, size_t length, const char *core, size_t size)
{
    size_t before = heard_prefix_length();
    return length == heard_length(size) && !memcmp(payload, heard_prefix(), before) &&
           !memcmp(payload + before, core, size) &&
           !memcmp(payload + before + size, suffix(), strlen(suffix()));
}

size_t prefix_length(void)
{
    return strlen(prefix());
}

size_t wrapped_length(size_t core)
{
    return strlen(prefix()) + core + strlen(suffix());
}

/* Returns the length. */
size_t wrap(char *to, const char *core, size_t length)
{
    size_t before = strlen(prefix()), after = strlen(suffix());
    memcpy(to, prefix(), before);
    memcpy(to + before, core, length);
    memcpy(to + before + length, suffix(), after);
    return before + length + after;
}

void flush(struct client *c)
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

/* Write one masked frame, as RFC 6455 section 5.3 wants it of clients; returns its length. */
size_t write_frame(unsigned char *start, int opcode, const void *payload, size_t length)
{
    uint32_t key = noise();
    unsigned char mask[4], *to = start;
    memcpy(mask, &key, 4);
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
    return (size_t)(to - start) + length;
}

void queue_frame(struct client *c, int opcode, const void *payload, size_t length)
{
    if (c->end + MAX_HEADER + length > c->room)
        fail("client %td: the server sends pings but does not read the answers", c - clients);
    else
        c->end += write_frame(c->out + c->end, opcode, payload, length);
}

/* Returns the header's length, 0 while it is incomplete. */
size_t read_header(const unsigned char *at, size_t available, size_t *payload)
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
bool acceptable(const struct client *c, const unsigned char *at, size_t length, size_t limit)
{
    int opcode = at[0] & 15;
    bool control = opcode == CLOSE || opcode == PING || opcode == PONG;
    if (!(at[0] & 0x80) || (at[0] & 0x70) || (at[1] & 0x80) || !(control || opcode == TEXT)) {
        fail("client %td: unexpected frame, header %02x %02x (expected a whole text message)",
             c - clients, at[0], at[1]);
        return false;
    }
    if (control)
        limit = MAX_CONTROL;
    if (length > limit) {
        fail("client %td: frame of %zu bytes, at most %zu expected", c - clients, length, limit);
        return false;
    }
    return true;
}

void refuse_close(const struct client *c, const unsigned char *payload, size_t length)
{
    int code = length < 2 ? 1005 : payload[0] << 8 | payload[1];
    int text = length < 2 ? 0 : (int)length - 2;
    fail("client %td: the server closed the connection with %d \"%.*s\"", c - clients, code, text,
         (const char *)payload + (text ? 2 : 0));
}

void hang_up(struct client *c)
{
    close(c->fd);
    c->fd = -1;
    c->state = FREE;
    open_count--;
}
