/* The command line. */
#include "loadgen.h"

#include <getopt.h>
#include <sys/resource.h>

static const char USAGE[] =
    "usage: loadgen fanout|echo|target|crowd|handshakes --port PORT --path PATH [options]\n"
    "\n"
    "  fanout      --clients connections subscribe to the channel behind PATH; the first\n"
    "              --publishers of them send messages, which the server must deliver to all\n"
    "              clients, the sender included. With --channels C --per-client K each client is\n"
    "              in K of C channels, which PATH names in place of {channels}, as 0001,0a3f; each\n"
    "              publisher sends to its own in turn: a message begins with the channel's name\n"
    "  echo        every client sends messages and waits for the server to send each one back\n"
    "  target      the first client sends messages, each to one of all the clients: a message\n"
    "              begins with the receiver's user name, which is that of its cookie\n"
    "  crowd       --clients connections send one message each, which the server sends back;\n"
    "              measures the memory of --server-pid. --plain: only TCP, nothing is sent\n"
    "  handshakes  --clients at a time connect, have their 101, close and come again\n"
    "\n"
    "  --host HOST        a loopback address, 127.x.y.z or localhost (127.0.0.1)\n"
    "  --port PORT        where the server listens\n"
    "  --other-port PORT  where a second server listens, to which the second half of the clients\n"
    "                     and all idle ones go; fanout only\n"
    "  --path PATH        path of the WebSocket, for example /ws/echo. {n} in it becomes the\n"
    "                     number of the client, or with --rooms R one of R numbers\n"
    "  --clients N        connections, 1-19000 (fanout 1000, echo 100, crowd 1000, handshakes 1)\n"
    "  --publishers P     how many of the clients send; fanout only, 1-1000 (1)\n"
    "  --inflight K       unfinished messages per sender, 1-64 (1)\n"
    "  --rate R           deliveries a second, by the clock, whatever is unfinished; fanout with\n"
    "                     one publisher. Latency then counts from when a message was due\n"
    "  --size BYTES       payload of a message, 32-65536 (64), without what a dialect adds\n"
    "  --dialect D        raw, json (the payload in a string of a JSON object), v1 or socketio\n"
    "                     (Engine.IO 4 and Socket.IO 5 packets) (raw)\n"
    "  --idle N           connections to --extra-path that hear nothing (0)\n"
    "  --storm N          connections to --extra-path as fast as they come, at most --pending\n"
    "                     (1000) under way; the measurement lasts as long as they take (0)\n"
    "  --browser          send the headers and the cookie that a browser would\n"
    "  --message TEXT     what a crowd says (hello)\n"
    "  --ask TEXT         at the end, send this; the answer, JSON, is \"server\" in the result\n"
    "  --warmup SECONDS   load before anything is measured, 0-60 (1)\n"
    "  --seconds SECONDS  length of the measurement, 0.1-600 (5)\n"
    "  --timeout SECONDS  give up when nothing arrives for so long, 1-60 (10)\n"
    "  --server-pid PID   also report the CPU time of this process during the measurement\n"
    "  --watch PID        the same of another process; up to four times\n"
    "\n"
    "Latency is from the call that sends a message to the read that has it, for each delivery.\n"
    "Messages of one sender that become due in one read go out in one write.\n"
    "Prints one line of JSON. Exit code: 0 all messages arrived once, in order and intact;\n"
    "1 they did not, or the server failed; 2 wrong arguments.\n";

struct options options = {.host = "127.0.0.1", .size = 64, .warmup = 1, .seconds = 5,
                          .timeout = 10, .message = "hello", .pending = 1000};

static double real(const char *name, const char *text, double least, double most)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (errno || end == text || *end || !(value >= least && value <= most))
        die(2, "--%s must be a number from %g to %g, not \"%s\"", name, least, most, text);
    return value;
}

static int whole(const char *name, const char *text, int least, int most)
{
    double value = real(name, text, least, most);
    if (value != (double)(int)value)
        die(2, "--%s must be a whole number, not \"%s\"", name, text);
    return (int)value;
}

static const struct option LONG[] = {
    {"help", no_argument, 0, '!'},             {"host", required_argument, 0, 'h'},
    {"port", required_argument, 0, 'p'},       {"path", required_argument, 0, 'u'},
    {"other-port", required_argument, 0, 'q'}, {"watch", required_argument, 0, 'W'},
    {"clients", required_argument, 0, 'n'},    {"publishers", required_argument, 0, 'b'},
    {"inflight", required_argument, 0, 'k'},   {"size", required_argument, 0, 's'},
    {"warmup", required_argument, 0, 'w'},     {"seconds", required_argument, 0, 't'},
    {"timeout", required_argument, 0, 'o'},    {"server-pid", required_argument, 0, 'i'},
    {"channels", required_argument, 0, 'c'},   {"per-client", required_argument, 0, 'C'},
    {"rate", required_argument, 0, 'r'},       {"dialect", required_argument, 0, 'd'},
    {"idle", required_argument, 0, 'I'},       {"storm", required_argument, 0, 'S'},
    {"extra-path", required_argument, 0, 'U'}, {"pending", required_argument, 0, 'P'},
    {"browser", no_argument, 0, 'B'},          {"plain", no_argument, 0, 'T'},
    {"message", required_argument, 0, 'm'},    {"ask", required_argument, 0, 'a'},
    {"rooms", required_argument, 0, 'R'},      {0, 0, 0, 0},
};

static void set_dialect(const char *name)
{
    options.socketio = !strcmp(name, "socketio");
    options.json = !strcmp(name, "json");
    options.v1 = !strcmp(name, "v1");
    if (!options.socketio && !options.json && !options.v1 && strcmp(name, "raw"))
        die(2, "--dialect must be raw, json, v1 or socketio, not \"%s\"", name);
}

static void watch(int pid)
{
    if (window.watched == MAX_WATCHED)
        die(2, "--watch is possible %d times", MAX_WATCHED);
    if (clock_getcpuclockid(pid, &window.clocks[window.watched++]))
        die(2, "there is no process %d to watch", pid);
}

static void set_option(int letter, const char *text)
{
    switch (letter) {
    case '!': fputs(USAGE, stdout); exit(0);
    case 'h': options.host = strcmp(text, "localhost") ? text : "127.0.0.1"; break;
    case 'u': options.path = text; break;
    case 'U': options.extra_path = text; break;
    case 'd': set_dialect(text); break;
    case 'm': options.message = text; break;
    case 'a': options.ask = text; break;
    case 'B': options.browser = true; break;
    case 'T': options.plain = true; break;
    case 'p': options.port = whole("port", text, 1, 65535); break;
    case 'q': options.other_port = whole("other-port", text, 1, 65535); break;
    case 'W': watch(whole("watch", text, 1, MAX_PID)); break;
    case 'n': options.clients = whole("clients", text, 1, MAX_CLIENTS); break;
    case 'b': options.publishers = whole("publishers", text, 1, 1000); break;
    case 'k': options.inflight = whole("inflight", text, 1, MAX_INFLIGHT); break;
    case 's': options.size = whole("size", text, MIN_SIZE, MAX_SIZE); break;
    case 'c': options.channels = whole("channels", text, 1, MAX_CHANNELS); break;
    case 'C': options.per_client = whole("per-client", text, 1, 100); break;
    case 'r': options.rate = whole("rate", text, 1, 100000000); break;
    case 'I': options.idle = whole("idle", text, 0, MAX_CLIENTS); break;
    case 'S': options.storm = whole("storm", text, 0, MAX_CLIENTS); break;
    case 'P': options.pending = whole("pending", text, 1, MAX_CLIENTS); break;
    case 'R': options.rooms = whole("rooms", text, 1, MAX_CLIENTS); break;
    case 'w': options.warmup = real("warmup", text, 0, 60); break;
    case 't': options.seconds = real("seconds", text, 0.1, 600); break;
    case 'o': options.timeout = whole("timeout", text, 1, 60); break;
    case 'i': options.server_pid = whole("server-pid", text, 1, MAX_PID); break;
    default: exit(2); /* getopt has said what is wrong */
    }
}

static void check_file_limit(int connections)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    rlim_t wanted = (rlim_t)connections + 16;
    if (limit.rlim_cur >= wanted)
        return;
    if (limit.rlim_max < wanted)
        die(2, "%d clients need %d file descriptors; the limit is %d", connections, (int)wanted,
            (int)limit.rlim_max);
    limit.rlim_cur = wanted;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void check_path(const char *path)
{
    if (path[0] != '/' || strlen(path) > 256 || strpbrk(path, " \r\n"))
        die(2, "a path must start with / and have no spaces");
}

/* Options that mean nothing where they stand are mistakes. */
static void check_combinations(void)
{
    bool fanout = options.mode == FANOUT;
    if (!fanout && (options.publishers || options.channels || options.rate || options.storm ||
                    options.other_port))
        die(2, "--publishers, --channels, --rate, --storm and --other-port belong to fanout");
    if (options.rate && (options.publishers > 1 || options.channels > 1 || options.inflight))
        die(2, "--rate goes with one publisher, one channel, and without --inflight");
    if (options.storm && !options.rate)
        die(2, "--storm needs --rate");
    if ((options.idle || options.storm) && !options.extra_path)
        die(2, "--idle and --storm need --extra-path");
    if (options.mode == CROWD && !options.server_pid)
        die(2, "crowd needs --server-pid: its memory is what is measured");
    if (options.plain && (options.mode != CROWD || options.ask))
        die(2, "--plain belongs to crowd, without --ask");
    if (options.mode == HANDSHAKES && (options.ask || options.idle || options.socketio))
        die(2, "handshakes takes no --ask, --idle or --dialect socketio");
    if (options.mode == TARGET && (!options.browser || options.inflight > 1))
        die(2, "target needs --browser, whose cookie names the user, and one message in flight");
    if ((options.channels > 1) != (options.per_client > 0))
        die(2, "--channels and --per-client go together");
}

static void set_defaults(void)
{
    static const int usual[] = {[FANOUT] = 1000, [ECHO] = 100, [TARGET] = 1000, [CROWD] = 1000,
                                [HANDSHAKES] = 1};
    if (!options.clients)
        options.clients = usual[options.mode];
    if (!options.publishers)
        options.publishers = options.mode == ECHO ? options.clients : 1;
    if (!options.channels)
        options.channels = options.per_client = 1;
    if (!options.inflight)
        options.inflight = options.rate ? MAX_INFLIGHT : 1;
}

static void check_options(void)
{
    struct in_addr address;
    if (!options.port || !options.path)
        die(2, "--port and --path are needed; try --help");
    if (inet_pton(AF_INET, options.host, &address) != 1 || ntohl(address.s_addr) >> 24 != 127)
        die(2, "%s is not a loopback address: this tool puts load only on its own machine",
            options.host);
    check_path(options.path);
    if (options.extra_path)
        check_path(options.extra_path);
    check_combinations();
    set_defaults();
    if (options.publishers > options.clients)
        die(2, "--publishers is more than --clients");
    if (options.per_client > options.channels)
        die(2, "--per-client is more than --channels");
    client_count = options.clients + options.idle + options.storm;
    if (client_count > MAX_CLIENTS)
        die(2, "%d connections are too many; at most %d", client_count, MAX_CLIENTS);
    uint64_t senders = (uint64_t)options.publishers * (uint64_t)options.per_client;
    uint64_t memory = ((uint64_t)options.clients + 2 * senders * MAX_INFLIGHT) *
                      (uint64_t)options.size;
    if (options.mode == FANOUT)
        memory += senders * (uint64_t)options.clients * sizeof(struct progress);
    if (memory > MAX_MEMORY)
        die(2, "so many clients with such large messages need over 1 GiB; ask for less");
    if (options.server_pid && clock_getcpuclockid(options.server_pid, &window.server))
        die(2, "there is no process %d to watch", options.server_pid);
    check_file_limit(client_count);
}

void read_arguments(int argc, char **argv)
{
    static const char *const MODES[] = {"fanout", "echo", "target", "crowd", "handshakes"};
    int letter, mode = 0;
    window.server = CLOCK_PROCESS_CPUTIME_ID;
    if (argc < 2 || !strcmp(argv[1], "--help")) {
        fputs(USAGE, argc < 2 ? stderr : stdout);
        exit(argc < 2 ? 2 : 0);
    }
    while (mode <= HANDSHAKES && strcmp(argv[1], MODES[mode]))
        mode++;
    if (mode > HANDSHAKES)
        die(2, "the mode must be fanout, echo, target, crowd or handshakes, not \"%s\"; try --help",
            argv[1]);
    options.mode = (enum mode)mode;
    optind = 2;
    while ((letter = getopt_long(argc, argv, "", LONG, NULL)) != -1)
        set_option(letter, optarg);
    if (optind < argc)
        die(2, "\"%s\" is one argument too many; try --help", argv[optind]);
    check_options();
}
