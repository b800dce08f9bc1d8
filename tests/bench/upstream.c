/* The benchmark's upstream: LiteLLM's shapes at a speed that no proxy in front of it can reach. One thread, edge-triggered epoll.
 *
 *   POST /key/update          200, or LiteLLM's 403 if "allowed_routes" is still in the body
 *   GET  /key/info            200: the stored key
 *   GET  /sse?n=N&ms=M        N events of 100 bytes, one each M ms (0: as fast as they are taken), each in a write of its own
 *   GET  /download?bytes=N    N bytes
 *   any other                 the body is read; 200 with 2 KB of JSON (for /upload: how many bytes there were)
 *
 * Prints the port it listens on, and serves until it is stopped. */
#include "http1.h"
#include <sys/prctl.h>
#include <sys/timerfd.h>

enum { HELD = 16 * 1024, SCRATCH = 256 * 1024, BLOCK = 256 * 1024, STREAMS = 4096 };

enum route { PLAIN, UPLOAD, DOWNLOAD, SSE, KEY_INFO, KEY_UPDATE };

struct conn {
    int fd;
    enum { HEAD, BODY, ANSWER } state;
    enum route route;
    bool close_after, writable;
    char held[HELD]; /* an incomplete head; for /key/update the body too */
    size_t have;
    struct body body;
    bool guarded;
    /* the answer under way */
    const char *out;
    size_t out_left;
    uint64_t left;    /* bytes (download) or events (sse) still to be sent */
    int64_t due, gap; /* ns: the next event, and from one to the next */
    int stream;       /* index in streams[], or -1 */
};

static char scratch[SCRATCH + HELD], block[BLOCK];
static char plain[4096], info[4096], updated[4096], refused[4096], event[128];
static char *info_key; /* where /key/info's answer names the key that was asked for: 64 hex digits */
static size_t plain_length, info_length, updated_length, refused_length, event_length;
static struct conn *streams[STREAMS];
static int stream_count, epoll, timer;

static const char FIELDS[] = "date: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
                             "server: uvicorn\r\n"
                             "x-litellm-call-id: 7a1f1a36-0c57-4d5c-9f5a-5d5f9b1b7f10\r\n"
                             "x-litellm-model-id: 1b4a7e5f3c1d\r\n"
                             "x-litellm-version: 1.83.13\r\n"
                             "x-ratelimit-remaining-requests: 9999\r\n";

static size_t answer(char *to, const char *status, const char *body) {
    return sprintf(to, "HTTP/1.1 %s\r\n%scontent-length: %zu\r\ncontent-type: application/json\r\n\r\n%s", status, FIELDS,
                   strlen(body), body);
}

static void prepare(void) {
    char body[2049];
    int n = sprintf(body, "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"choices\":[{\"message\":{\"content\":\"");
    memset(body + n, 'x', 2048 - n);
    strcpy(body + 2048 - 5, "\"}}]}");
    plain_length = answer(plain, "200 OK", body);
    info_length = answer(info, "200 OK",
                         "{\"key\":\"0000000000000000000000000000000000000000000000000000000000000000\",\"info\":{\"key_name\":\"sk-...abcd\",\"key_alias\":\"mine\",\"spend\":0.0,\"expires\":null,"
                         "\"models\":[\"all-team-models\"],\"aliases\":{},\"config\":{},\"user_id\":\"u1\",\"team_id\":null,"
                         "\"permissions\":{},\"max_parallel_requests\":null,\"metadata\":{},\"blocked\":null,\"tpm_limit\":null,"
                         "\"rpm_limit\":null,\"max_budget\":null,\"budget_duration\":null,\"budget_limits\":null,"
                         "\"allowed_cache_controls\":[],\"allowed_routes\":[\"llm_api_routes\"],\"access_group_ids\":[],"
                         "\"model_spend\":{},\"model_max_budget\":{},\"created_by\":\"u1\",\"object_permission\":null}}");
    info_key = strstr(info, "\"key\":\"") + 7;
    updated_length = answer(updated, "200 OK", "{\"key\":\"0\",\"models\":[\"all-team-models\"],\"spend\":0.0,\"user_id\":\"u1\"}");
    refused_length = answer(refused, "403 Forbidden",
                            "{\"error\":{\"message\":\"{'error': 'Only proxy admins can set `allowed_routes` on a key.'}\","
                            "\"type\":\"auth_error\",\"param\":\"None\",\"code\":\"403\"}}");
    n = sprintf(event, "%x\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"", EVENT_BYTES);
    memset(event + n, 'x', 4 + EVENT_BYTES - n); /* 4: the chunk's size line */
    memcpy(event + 4 + EVENT_BYTES - 7, "\"}}]}\n\n\r\n0\r\n\r\n", 14);
    event_length = 4 + EVENT_BYTES + 2;
    memset(block, 'x', sizeof block);
}

static void drop(struct conn *c) {
    if (c->stream >= 0) {
        streams[c->stream] = streams[--stream_count];
        streams[c->stream]->stream = c->stream;
    }
    close(c->fd);
    free(c);
}

/* Sends what is pending. Returns false if the connection is gone (and freed). */
static bool flush(struct conn *c) {
    while (c->out_left) {
        ssize_t n = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            c->writable = false;
            return true;
        }
        if (n < 0) {
            drop(c);
            return false;
        }
        c->out += n;
        c->out_left -= n;
    }
    return true;
}

static bool begin(struct conn *c, const char *out, size_t length) {
    c->out = out;
    c->out_left = length;
    return flush(c);
}

/* Ends an answer: the connection waits for its next request. */
static bool finish(struct conn *c) {
    if (c->stream >= 0) {
        streams[c->stream] = streams[--stream_count];
        streams[c->stream]->stream = c->stream;
        c->stream = -1;
    }
    c->state = HEAD;
    if (!c->close_after) return true;
    drop(c);
    return false;
}

/* Goes on with a download until the socket is full. */
static bool download(struct conn *c) {
    while (c->writable) {
        if (!c->left && !c->out_left) return finish(c);
        if (!c->out_left) {
            c->out_left = c->left < BLOCK ? c->left : BLOCK;
            c->left -= c->out_left;
            c->out = block;
        }
        if (!flush(c)) return false;
    }
    return true;
}

/* Sends one event if it is due, or the end. */
static bool tick(struct conn *c, int64_t now) {
    if (!c->writable || (c->left && now < c->due)) return true;
    if (c->out_left && !flush(c)) return false;
    if (!c->writable) return true;
    if (!c->left) return finish(c);
    c->due += c->gap;
    bool last = !--c->left; /* then the last chunk goes along */
    return begin(c, event, event_length + (last ? 5 : 0)) && (!last || c->out_left || finish(c));
}

/* Goes on with an answer when the socket takes bytes again. */
static bool resume(struct conn *c) {
    c->writable = true;
    if (c->state != ANSWER || c->stream >= 0) return true; /* a stream's next tick sends */
    if (c->route == DOWNLOAD) return download(c);
    return flush(c) && (c->out_left || finish(c));
}

static uint64_t parameter(const char *target, const char *name) {
    const char *at = strstr(target, name);
    return at ? strtoull(at + strlen(name), NULL, 10) : 0;
}

static bool respond(struct conn *c) {
    static char text[4096];
    static uint64_t turn;
    c->state = ANSWER;
    switch (c->route) {
    case PLAIN:
        return begin(c, plain, plain_length) && (c->out_left || finish(c));
    case KEY_INFO:
        return begin(c, info, info_length) && (c->out_left || finish(c));
    case KEY_UPDATE: {
        const char *out = c->guarded ? refused : updated;
        return begin(c, out, c->guarded ? refused_length : updated_length) && (c->out_left || finish(c));
    }
    case UPLOAD: {
        char body[64];
        sprintf(body, "{\"received\":%" PRIu64 "}", c->body.received);
        return begin(c, text, answer(text, "200 OK", body)) && (c->out_left || finish(c));
    }
    case DOWNLOAD: {
        size_t n = sprintf(text, "HTTP/1.1 200 OK\r\n%scontent-length: %" PRIu64 "\r\ncontent-type: application/octet-stream\r\n\r\n",
                           FIELDS, c->left);
        return begin(c, text, n) && download(c);
    }
    case SSE: {
        size_t n = sprintf(text, "HTTP/1.1 200 OK\r\n%scontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n", FIELDS);
        if (stream_count == STREAMS) {
            drop(c);
            return false;
        }
        if (!begin(c, text, n)) return false;
        c->stream = stream_count;
        streams[stream_count++] = c;
        c->due = now_ns();
        if (!tick(c, c->due)) return false;
        /* Streams start together but do not stay in step: each gets a phase of its own (multiples of the golden ratio). */
        if (c->stream >= 0) c->due -= (int64_t)((double)c->gap * ((++turn * 0x9E3779B97F4A7C15ULL) >> 11) / (1ULL << 53));
        return true;
    }
    }
    return true;
}

static bool parse_head(struct conn *c, char *head, size_t length) {
    char *target = memchr(head, ' ', length), *end = target ? memchr(target + 1, ' ', head + length - target - 1) : NULL;
    if (!end) return false;
    *end = 0;
    target++;
    const char *connection = field(end + 1, head + length - end - 1, "connection:");
    c->close_after = !strncmp(end + 1, "HTTP/1.0", 8) || (connection && !strncasecmp(connection, "close", 5));
    c->left = c->gap = 0;
    c->guarded = false;
    if (!strncmp(target, "/sse", 4)) {
        c->route = SSE;
        c->left = parameter(target, "n=");
        c->gap = parameter(target, "ms=") * 1000000LL;
    } else if (!strncmp(target, "/download", 9)) {
        c->route = DOWNLOAD;
        c->left = parameter(target, "bytes=");
    } else if (!strncmp(target, "/upload", 7)) {
        c->route = UPLOAD;
    } else if (!strncmp(target, "/key/info", 9)) {
        c->route = KEY_INFO;
        char *key = strstr(target, "key=");
        if (key && strlen(key + 4) >= 64) memcpy(info_key, key + 4, 64); /* answered before the next head is read */
    } else if (!strncmp(target, "/key/update", 11)) {
        c->route = KEY_UPDATE;
    } else {
        c->route = PLAIN;
    }
    body_start(&c->body, end + 1, head + length - end - 1, false);
    c->state = BODY;
    return true;
}

/* Takes bytes as far as they make whole requests; keeps the rest. Returns false if the connection is gone. */
static bool take(struct conn *c, char *data, size_t length) {
    while (length) {
        if (c->state == HEAD) {
            char *end = memmem(data, length, "\r\n\r\n", 4);
            if (!end) break;
            size_t n = end + 4 - data;
            if (!parse_head(c, data, n)) {
                drop(c);
                return false;
            }
            data += n;
            length -= n;
        }
        if (c->state == ANSWER) break;
        if (c->route == KEY_UPDATE && memmem(data, length, "\"allowed_routes\"", 16)) c->guarded = true;
        size_t n = body_feed(&c->body, data, length);
        data += n;
        length -= n;
        if (!c->body.done) break;
        if (!respond(c)) return false;
    }
    if (length > HELD) {
        drop(c);
        return false;
    }
    memcpy(c->held, data, length);
    c->have = length;
    return true;
}

static void on_readable(struct conn *c) {
    for (;;) {
        memcpy(scratch, c->held, c->have);
        ssize_t n = recv(c->fd, scratch + c->have, SCRATCH, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) {
            drop(c);
            return;
        }
        if (n < 0) return;
        size_t have = c->have;
        c->have = 0;
        if (!take(c, scratch, have + n) || n < SCRATCH) return;
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        c->fd = fd;
        c->stream = -1;
        c->writable = true;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e)) die("epoll_ctl");
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    prctl(PR_SET_TIMERSLACK, 1UL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    prepare();
    epoll = epoll_create1(0);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &listener});
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &(struct epoll_event){.events = EPOLLIN, .data.ptr = &timer});
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);

    for (bool busy = false;;) {
        struct epoll_event ready[512];
        int n = epoll_wait(epoll, ready, 512, busy ? 0 : -1);
        for (int i = 0; i < n; i++) {
            uint64_t expirations;
            if (ready[i].data.ptr == &listener) {
                accept_all(listener);
            } else if (ready[i].data.ptr == &timer) {
                if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN) die("timerfd");
            } else {
                struct conn *c = ready[i].data.ptr;
                if (ready[i].events & EPOLLOUT && !c->writable && !resume(c)) continue;
                if (ready[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) on_readable(c);
            }
        }
        if (!stream_count) {
            busy = false;
            continue;
        }
        int64_t now = now_ns(), next = INT64_MAX;
        busy = false;
        for (int i = stream_count - 1; i >= 0; i--) { /* downwards: a stream that ends is replaced by the last one */
            struct conn *c = streams[i];
            if (!tick(c, now) || c->stream < 0 || !c->writable) continue;
            if (!c->gap) busy = true;
            else if (c->due < next) next = c->due;
        }
        if (!busy && next != INT64_MAX) {
            struct itimerspec at = {.it_value = {next / 1000000000LL, next % 1000000000LL}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
        }
    }
}
