/* The load generator: see loadgen.h. */
#include "loadgen.h"

#include <signal.h>

struct client *clients;
int client_count, open_count, epoll_fd;
enum phase phase;

static void on_alarm(int number)
{
    static const char text[] = "loadgen: took far longer than it was asked to; stopped\n";
    (void)number;
    if (write(2, text, sizeof text - 1) < 0)
        _exit(1);
    _exit(1);
}

int main(int argc, char **argv)
{
    read_arguments(argc, argv);
    signal(SIGALRM, on_alarm);
    signal(SIGPIPE, SIG_IGN);
    alarm((unsigned)(3 * CONNECT_SECONDS + (int)options.warmup * 2 + (int)options.seconds +
                     5 * options.timeout));
    clients = allocate((size_t)client_count, sizeof *clients);
    for (int i = 0; i < client_count; i++)
        clients[i].fd = -1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (options.mode == CROWD)
        return run_crowd();
    if (options.mode == HANDSHAKES)
        return run_handshakes();
    prepare_streams();
    run();
    return report();
}
