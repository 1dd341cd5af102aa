/* Small tools: time, memory, errors, hexadecimal, and the histogram of latencies. */
#include "loadgen.h"

#include <dirent.h>
#include <stdarg.h>

static char failure[256];
static uint64_t latencies[BUCKETS], longest, count;

uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* CPU seconds used so far by a process. */
double cpu_seconds(clockid_t process)
{
    struct timespec t = {0};
    clock_gettime(process, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Memory of a process that is in RAM, without the kernel's. From smaps_rollup, which counts the
 * pages; statm's counters lag behind by some hundred kilobytes on recent kernels. */
long resident_bytes(int pid)
{
    char name[64], line[256];
    long kilobytes = -1;
    snprintf(name, sizeof name, "/proc/%d/smaps_rollup", pid);
    FILE *file = fopen(name, "r");
    while (file && kilobytes < 0 && fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %ld kB", &kilobytes) == 1)
            break;
    if (file)
        fclose(file);
    if (kilobytes < 0)
        die(1, "the memory of process %d can't be read", pid);
    return kilobytes * 1024;
}

int open_files(int pid)
{
    char name[64];
    int found = 0;
    snprintf(name, sizeof name, "/proc/%d/fd", pid);
    DIR *folder = opendir(name);
    if (!folder)
        die(1, "the open files of process %d can't be counted", pid);
    for (struct dirent *entry = readdir(folder); entry; entry = readdir(folder))
        found += entry->d_name[0] != '.';
    closedir(folder);
    return found;
}

void die(int code, const char *text, ...)
{
    va_list list;
    va_start(list, text);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, text, list);
    fputc('\n', stderr);
    va_end(list);
    exit(code);
}

/* Note an error of the server and end the run: what comes after it would measure nothing. */
void fail(const char *text, ...)
{
    va_list list;
    va_start(list, text);
    if (!failure[0])
        vsnprintf(failure, sizeof failure, text, list);
    va_end(list);
    phase = OVER;
}

/* NULL while nothing failed. */
const char *first_failure(void)
{
    return failure[0] ? failure : NULL;
}

void *allocate(size_t number, size_t size)
{
    void *memory = calloc(number, size);
    if (!memory)
        die(1, "out of memory");
    return memory;
}

void write_hex(char *to, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4)
        to[i] = "0123456789abcdef"[value & 15];
}

/* Returns false on anything that write_hex could not have written. */
bool read_hex(const unsigned char *from, int digits, uint32_t *value)
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

/* The same numbers in every run. */
uint32_t noise(void)
{
    static uint32_t state = 0x9e3779b9;
    state ^= state << 13, state ^= state >> 17, state ^= state << 5;
    return state;
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

void note_latency(uint64_t nanoseconds)
{
    count++;
    latencies[bucket_of(nanoseconds)]++;
    if (nanoseconds > longest)
        longest = nanoseconds;
}

double percentile_us(double share)
{
    uint64_t wanted = (uint64_t)((double)count * share), passed = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        passed += latencies[i];
        if (passed > wanted)
            return (middle_of(i) < (double)longest ? middle_of(i) : (double)longest) / 1000;
    }
    return (double)longest / 1000;
}

double longest_us(void)
{
    return (double)longest / 1000;
}
