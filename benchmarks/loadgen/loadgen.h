/* The load generator of Backchannel's benchmarks: many WebSocket clients in one small process.
 *
 * One thread, epoll, no libraries, so that the server under test is what is measured.
 * `loadgen --help` says what it does; bench.py builds and starts it.
 *
 * A "stream" is what one publisher sends to one channel. Every publisher keeps at most --inflight
 * messages unfinished; a message is finished when everyone who should have it has it: the
 * channel's members in fanout mode, its own sender in echo mode, one chosen client in target mode.
 */
#ifndef LOADGEN_H
#define LOADGEN_H
#ifndef __linux__
#error "loadgen needs Linux (epoll)"
#endif
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 19000,
    MAX_CHANNELS = 1024,
    MAX_INFLIGHT = 64, /* `struct progress` remembers what came early in the bits of one word */
    MIN_SIZE = 32,
    MAX_SIZE = 65536,
    /* A payload: whom it is for (a channel or a client), its stream, its number, its time. */
    ADDRESS_DIGITS = 4,
    STREAM_DIGITS = 4,
    NUMBER_DIGITS = 8,
    TIME_DIGITS = 16,
    STREAM_AT = ADDRESS_DIGITS,
    NUMBER_AT = STREAM_AT + STREAM_DIGITS,
    TIME_AT = NUMBER_AT + NUMBER_DIGITS,
    PROBE_STREAM = 0xffff,
    MAX_HEADER = 14,
    MAX_CONTROL = 125,
    MAX_WRAP = 128,
    MAX_ANSWER = 1024, /* to --ask */
    READ_BUFFER = 256 * 1024,
    EVENTS = 256,
    CONNECT_SECONDS = 60,
    CLOSE_SECONDS = 3,
    BUCKETS = 64 * 60,
    MAX_WATCHED = 4,
    MAX_PID = 1 << 22,
    ENDED = EPOLLRDHUP | EPOLLHUP | EPOLLERR,
};
enum { TEXT = 1, CLOSE = 8, PING = 9, PONG = 10 };
enum mode { FANOUT, ECHO, TARGET, CROWD, HANDSHAKES };
enum phase { PROBE, WARM_UP, MEASURE, DRAIN, ASK, GOODBYE, OVER };
enum state { FREE, CONNECTING, ASKED, GREETED, JOINED, OPEN, ANSWERED, LEAVING };

#define SECOND UINT64_C(1000000000)
#define MAX_MEMORY (UINT64_C(1) << 30)

struct options {
    enum mode mode;
    const char *host, *path, *extra_path, *message, *ask;
    int port, other_port, clients, publishers, inflight, size, timeout, server_pid;
    int channels, per_client, rooms, rate, idle, storm, pending;
    double warmup, seconds;
    bool browser, plain, socketio, json, v1;
};

/* One message on its way. */
struct message {
    uint64_t sent_at;
    uint32_t missing;  /* receivers that do not have it yet */
    uint32_t receiver; /* target mode: who shall get it */
    char *payload;     /* with what the dialect puts around it */
};

struct stream {
    int publisher, channel;
    uint32_t next;   /* number of the next message */
    uint32_t oldest; /* number of the oldest unfinished one; equal to next when none is */
    struct message window[MAX_INFLIGHT];
};

struct publisher {
    int first, count, turn; /* its streams, and the one whose turn it is */
    uint32_t unfinished;
    bool due; /* has room for new messages and stands in the list of such */
};

/* What one client has of one stream: all before `next`, and `next + i` for each bit i set. */
struct progress {
    uint32_t next;
    uint64_t early;
};

struct client {
    int fd;
    enum state state;
    uint64_t began;            /* when it started to connect */
    int unprobed;              /* channels that it has not heard yet */
    bool *hears;               /* which channels; NULL when there is only one */
    struct progress *progress; /* one per stream it hears */
    unsigned char *partial;    /* start of a frame whose rest has not come yet */
    size_t partial_length;
    unsigned char *out; /* what the socket did not take yet is out[sent..end) */
    size_t sent, end, room;
};

extern struct options options;
extern struct client *clients; /* those that take part, then --idle ones, then --storm ones */
extern int client_count, open_count, epoll_fd; /* open: with a socket, opened or not */
extern enum phase phase;

/* tools.c */
uint64_t now(void);
double cpu_seconds(clockid_t process);
long resident_bytes(int pid);
int open_files(int pid);
void die(int code, const char *text, ...) __attribute__((noreturn, format(printf, 2, 3)));
void fail(const char *text, ...) __attribute__((format(printf, 1, 2)));
const char *first_failure(void);
void *allocate(size_t count, size_t size);
void write_hex(char *to, uint64_t value, int digits);
bool read_hex(const unsigned char *from, int digits, uint32_t *value);
uint32_t noise(void);
void note_latency(uint64_t nanoseconds);
double percentile_us(double share);
double longest_us(void);

/* arguments.c */
void read_arguments(int argc, char **argv);

/* frames.c */
size_t wrap(char *to, const char *core, size_t length);
size_t prefix_length(void);
size_t wrapped_length(size_t core);
size_t heard_prefix_length(void);
size_t heard_length(size_t core);
bool is_heard(const unsigned char *payload, size_t length, const char *core, size_t size);
size_t write_frame(unsigned char *to, int opcode, const void *payload, size_t length);
void queue_frame(struct client *c, int opcode, const void *payload, size_t length);
void flush(struct client *c);
void hang_up(struct client *c);
size_t read_header(const unsigned char *at, size_t available, size_t *payload);
bool acceptable(const struct client *c, const unsigned char *at, size_t length, size_t limit);
void refuse_close(const struct client *c, const unsigned char *payload, size_t length);

/* connect.c: what a mode does with a connection that has none of the buffers of `streams.c` */
extern void (*on_opened)(struct client *c);
extern void (*on_text_frame)(struct client *c, const unsigned char *payload, size_t length);
extern void (*on_ended)(struct client *c);
extern int opened_count; /* handshakes that were completed */
void start_connecting(int number);
void on_events(struct client *c, uint32_t events);
void handle_events(struct timespec patience);
void send_now(struct client *c, int opcode, const void *payload, size_t length);
void connect_range(int first, int count, int pending);
void expect_hangup(struct client *c);

/* crowd.c, handshakes.c */
int run_crowd(void);
int run_handshakes(void);

/* streams.c */
extern struct stream *streams;
extern int stream_count;
void prepare_streams(void);
void prepare_client(int number);
void publish(int publisher);
void publish_due(void);
void publish_scheduled(uint64_t at);
void start_schedule(uint64_t at);
uint64_t next_scheduled(void);
void finish_oldest(struct stream *s);
bool all_finished(void);
void send_probes(void);

/* receive.c */
extern uint64_t last_delivery, deliveries, total_deliveries; /* deliveries: in the measured time */
extern uint64_t lost, duplicates, out_of_order, corrupt;
extern int unprobed_clients;
extern bool measuring;
extern char *answer;
void on_readable(struct client *c, bool ended);

/* run.c */
extern struct window {
    clockid_t server;
    uint64_t began, nanoseconds;
    double own_cpu, server_cpu;
    clockid_t clocks[MAX_WATCHED]; /* of the other processes that are watched */
    double cpu[MAX_WATCHED];
    int watched;
    int stormed;
} window;
void run(void);

/* result.c */
int report(void);
#endif
