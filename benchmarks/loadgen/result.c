/* The result as one line of JSON. */
#include "loadgen.h"

static const char *const NAMES[] = {"fanout", "echo", "target", "crowd", "handshakes"};

int report(void)
{
    double seconds = (double)window.nanoseconds / 1e9;
    const char *noun = options.mode == FANOUT ? "deliveries" : "messages";
    printf("{\"mode\": \"%s\", \"clients\": %d, \"publishers\": %d, \"inflight\": %d, "
           "\"size\": %d, \"%s\": %" PRIu64 ", \"seconds\": %.4f, \"asked_rate\": %d, "
           "\"idle\": %d, \"stormed\": %d, ",
           NAMES[options.mode], options.clients, options.publishers, options.inflight,
           options.size, noun, deliveries, seconds, options.rate, options.idle, window.stormed);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"total_%s\": %" PRIu64
           ", \"lost\": %" PRIu64 ", \"duplicates\": %" PRIu64 ", \"out_of_order\": %" PRIu64
           ", \"corrupt\": %" PRIu64 ", \"errors\": %d, \"loadgen_cpu_s\": %.4f, \"server\": %s",
           percentile_us(0.50), percentile_us(0.99), longest_us(), noun, total_deliveries, lost,
           duplicates, out_of_order, corrupt, first_failure() ? 1 : 0, window.own_cpu,
           answer ? answer : "null");
    if (options.server_pid)
        printf(", \"server_cpu_s\": %.4f", window.server_cpu);
    for (int i = 0; i < window.watched; i++)
        printf("%s%.4f%s", i ? ", " : ", \"watched_cpu_s\": [", window.cpu[i],
               i == window.watched - 1 ? "]" : "");
    puts("}");
    fflush(stdout);
    if (first_failure())
        die(1, "%s", first_failure());
    if (lost + duplicates + out_of_order + corrupt)
        die(1, "%" PRIu64 " lost, %" PRIu64 " duplicates, %" PRIu64 " out of order, %" PRIu64
            " corrupt", lost, duplicates, out_of_order, corrupt);
    if (!deliveries)
        die(1, "nothing was delivered during the measurement");
    return 0;
}
