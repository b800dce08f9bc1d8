/* The benchmark's load generator: one thread, epoll, closed loop. Every answer is checked; each mode prints one JSON object.
 *
 *   load requests   PORT CONNECTIONS SECONDS FILE BYTES   repeat FILE's request on each connection; answers: 200 with BYTES (0: any)
 *   load sse        PORT STREAMS EVENTS MS                that many streams of EVENTS each, one each MS milliseconds (0: flat out)
 *   load first-byte PORT TIMES                            one stream after the other on one connection: delay to the first event
 *   load download   PORT BYTES TIMES
 *   load upload     PORT BYTES TIMES
 */
#include "http1.h"

enum { SCRATCH = 256 * 1024, HELD = 8192, DRAIN_SECONDS = 20, SSE_SECONDS = 60, FAILURES = 1000 };

struct conn {
    int fd;
    bool in_body, waiting;
    int status;
    char held[HELD];
    size_t have;
    struct body body;
    int64_t started;
};

static char scratch[SCRATCH + HELD];
static struct sockaddr_in address = {.sin_family = AF_INET};
static uint64_t failures, reconnects, event_reads;
static int first_failure_status;
static uint32_t *latencies; /* units of 10 ns: up to 42 s */
static size_t latency_count, latency_room;

static void record(int64_t ns) {
    if (latency_count == latency_room) {
        latency_room = latency_room ? latency_room * 2 : 1 << 16;
        latencies = realloc(latencies, latency_room * sizeof *latencies);
        if (!latencies) die("realloc");
    }
    ns /= 10;
    latencies[latency_count++] = ns > UINT32_MAX ? UINT32_MAX : ns;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static double percentile(double q) { /* µs */
    return latency_count ? latencies[(size_t)(q * (latency_count - 1))] / 100.0 : 0;
}

static int dial(void) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket");
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct timeval patience = {.tv_sec = 60};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

static void fail(const struct conn *c) {
    if (!failures++) first_failure_status = c->status;
}

static void request(struct conn *c, const char *text, size_t length) {
    c->have = 0;
    c->status = 0;
    c->in_body = false;
    c->waiting = true;
    c->started = now_ns();
    /* A request of a few KB always fits an idle socket's buffer. */
    if (send(c->fd, text, length, MSG_NOSIGNAL) != (ssize_t)length) errno = 0; /* seen as a closed connection by recv */
}

/* Reads what there is. Returns payload bytes, or -1 if the connection has ended; c->body.done says whether the answer has. */
static ssize_t receive(struct conn *c, int flags) {
    memcpy(scratch, c->held, c->have);
    ssize_t n = recv(c->fd, scratch + c->have, SCRATCH, flags);
    if (n < 0 && errno == EAGAIN && flags & MSG_DONTWAIT) return 0;
    if (n <= 0) return -1;
    char *data = scratch;
    size_t length = c->have + n;
    c->have = 0;
    if (!c->in_body) {
        char *end = memmem(data, length, "\r\n\r\n", 4);
        if (!end) {
            if (length > HELD) return -1;
            memcpy(c->held, data, length);
            c->have = length;
            return 0;
        }
        size_t head = end + 4 - data;
        c->status = length > 12 ? atoi(data + 9) : 0;
        body_start(&c->body, data, head, true);
        c->in_body = true;
        data += head;
        length -= head;
    }
    uint64_t before = c->body.received;
    body_feed(&c->body, data, length);
    return c->body.received - before;
}

static int watch(struct conn *conns, int count) {
    int epoll = epoll_create1(0);
    for (int i = 0; i < count; i++) {
        conns[i].fd = dial();
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = &conns[i]};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, conns[i].fd, &e)) die("epoll_ctl");
    }
    return epoll;
}

static void requests(int count, double seconds, const char *file, uint64_t expected) {
    static char text[65536];
    FILE *f = fopen(file, "r");
    if (!f) die(file);
    size_t length = fread(text, 1, sizeof text, f);
    struct conn *conns = calloc(count, sizeof *conns);
    if (!conns) die("calloc");
    int epoll = watch(conns, count), waiting = count;
    uint64_t in_time = 0;
    int64_t start = now_ns(), end = start + (int64_t)(seconds * 1e9), limit = end + DRAIN_SECONDS * 1000000000LL, now = start;
    for (int i = 0; i < count; i++) request(&conns[i], text, length);
    while (waiting && now < limit) {
        struct epoll_event ready[512];
        int n = epoll_wait(epoll, ready, 512, 100);
        now = now_ns();
        for (int i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            ssize_t got = receive(c, MSG_DONTWAIT);
            if (got < 0) { /* closed: between two answers that is a server's right (and the request is sent again) */
                if (c->status || failures) fail(c);
                else reconnects++;
                close(c->fd);
                if (failures + reconnects > FAILURES) end = limit = 0;
                if (now >= end) {
                    waiting--;
                    continue;
                }
                c->fd = dial();
                struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
                if (epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e)) die("epoll_ctl");
                request(c, text, length);
                continue;
            }
            if (!c->in_body || !c->body.done) continue;
            now = now_ns();
            record(now - c->started);
            if (c->status != 200 || (expected && c->body.received != expected)) fail(c);
            if (now < end) {
                in_time++;
                request(c, text, length);
            } else {
                c->waiting = false;
                epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
                waiting--;
            }
        }
    }
    failures += waiting;
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"completed\": %zu, \"per_second\": %.1f, \"failures\": %" PRIu64 ", \"failure_status\": %d, \"reconnects\": %" PRIu64
           ", \"p50_us\": %.2f, \"p99_us\": %.2f}\n",
           latency_count, in_time / seconds, failures, first_failure_status, reconnects, percentile(.5), percentile(.99));
}

static size_t get(char *text, const char *target) {
    return sprintf(text, "GET %s HTTP/1.1\r\nhost: bench\r\naccept: */*\r\nauthorization: Bearer sk-bench\r\n\r\n", target);
}

static void sse(int count, int events, int ms) {
    char text[256], target[64];
    sprintf(target, "/sse?n=%d&ms=%d", events, ms);
    size_t length = get(text, target);
    struct conn *conns = calloc(count, sizeof *conns);
    if (!conns) die("calloc");
    int epoll = watch(conns, count), open = count;
    uint64_t bytes = 0;
    int64_t start = now_ns(), now = start, limit = start + SSE_SECONDS * 1000000000LL;
    for (int i = 0; i < count; i++) request(&conns[i], text, length);
    while (open && now < limit) {
        struct epoll_event ready[512];
        int n = epoll_wait(epoll, ready, 512, 100);
        for (int i = 0; i < n; i++) {
            struct conn *c = ready[i].data.ptr;
            ssize_t got = receive(c, MSG_DONTWAIT);
            if (got > 0) {
                bytes += got;
                event_reads++;
            }
            if (got >= 0 && !(c->in_body && c->body.done)) continue;
            if (got < 0 || c->status != 200 || c->body.received != (uint64_t)events * EVENT_BYTES) fail(c);
            epoll_ctl(epoll, EPOLL_CTL_DEL, c->fd, NULL);
            open--;
        }
        now = now_ns();
    }
    failures += open;
    double seen = (double)bytes / EVENT_BYTES;
    printf("{\"events\": %.0f, \"per_second\": %.1f, \"events_a_read\": %.3f, \"failures\": %" PRIu64 ", \"failure_status\": %d}\n",
           seen, seen * 1e9 / (now - start), event_reads ? seen / event_reads : 0, failures, first_failure_status);
}

static void first_byte(int times) {
    char text[256];
    size_t length = get(text, "/sse?n=2&ms=2"); /* the second event, later: nobody may wait for the end of the answer */
    struct conn c = {.fd = dial()};
    for (int i = 0; i < times; i++) {
        bool seen = false;
        request(&c, text, length);
        c.body.done = false;
        while (!c.in_body || !c.body.done) {
            ssize_t got = receive(&c, 0);
            if (got < 0) die("first-byte");
            if (got > 0 && !seen) record(now_ns() - c.started);
            seen |= got > 0;
        }
        if (c.status != 200 || c.body.received != 2 * EVENT_BYTES) fail(&c);
    }
    qsort(latencies, latency_count, sizeof *latencies, ascending);
    printf("{\"completed\": %zu, \"p50_us\": %.2f, \"p99_us\": %.2f, \"failures\": %" PRIu64 "}\n", latency_count, percentile(.5),
           percentile(.99), failures);
}

static void transfer(bool up, uint64_t bytes, int times) {
    static char block[SCRATCH], text[512], target[64];
    struct conn c = {.fd = dial()};
    int64_t busy = 0;
    sprintf(target, "/download?bytes=%" PRIu64, bytes);
    size_t length = up ? (size_t)sprintf(text,
                                         "POST /upload HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer sk-bench\r\n"
                                         "content-type: application/octet-stream\r\ncontent-length: %" PRIu64 "\r\n\r\n",
                                         bytes)
                       : get(text, target);
    memset(block, 'x', sizeof block);
    for (int i = 0; i < times; i++) {
        int64_t start = now_ns();
        request(&c, text, length);
        for (uint64_t left = up ? bytes : 0; left;) {
            ssize_t n = send(c.fd, block, left < SCRATCH ? left : SCRATCH, MSG_NOSIGNAL);
            if (n < 0) die("upload");
            left -= n;
        }
        c.body.done = false;
        while (!c.in_body || !c.body.done)
            if (receive(&c, 0) < 0) die(up ? "upload" : "download");
        busy += now_ns() - start;
        if (up) { /* the upstream says how much reached it */
            char *received = memmem(scratch, SCRATCH, "{\"received\":", 12);
            if (c.status != 200 || !received || strtoull(received + 12, NULL, 10) != bytes) fail(&c);
            memset(scratch, 0, 4096);
        } else if (c.status != 200 || c.body.received != bytes) {
            fail(&c);
        }
    }
    printf("{\"mb_per_second\": %.1f, \"failures\": %" PRIu64 "}\n", bytes / 1e6 * times * 1e9 / busy, failures);
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    const char *mode = argv[1];
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(atoi(argv[2]));
    if (!strcmp(mode, "requests") && argc == 7) requests(atoi(argv[3]), atof(argv[4]), argv[5], strtoull(argv[6], NULL, 10));
    else if (!strcmp(mode, "sse") && argc == 6) sse(atoi(argv[3]), atoi(argv[4]), atoi(argv[5]));
    else if (!strcmp(mode, "first-byte")) first_byte(atoi(argv[3]));
    else if (!strcmp(mode, "download") && argc == 5) transfer(false, strtoull(argv[3], NULL, 10), atoi(argv[4]));
    else if (!strcmp(mode, "upload") && argc == 5) transfer(true, strtoull(argv[3], NULL, 10), atoi(argv[4]));
    else return 2;
    return 0;
}
