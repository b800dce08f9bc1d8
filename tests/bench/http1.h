/* What the benchmark's upstream and load generator share: just enough HTTP/1.1 (RFC 9112) to frame messages. */
#ifndef HTTP1_H
#define HTTP1_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENT_BYTES = 100 }; /* one server-sent event, its empty line included */

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

/* The value of a field in a head that ends with an empty line, or NULL. `name` is lower case, with its colon. */
static inline const char *field(const char *head, size_t length, const char *name) {
    size_t n = strlen(name);
    const char *end = head + length;
    for (const char *line = memchr(head, '\n', length); line; line = memchr(line, '\n', end - line)) {
        line++;
        if ((size_t)(end - line) < n) return NULL;
        if (!strncasecmp(line, name, n)) {
            line += n;
            while (*line == ' ' || *line == '\t') line++;
            return line;
        }
    }
    return NULL;
}

/* A message body on its way: how much is left of it, or where the chunked coding stands. */
struct body {
    bool chunked, done;
    enum { SIZE, EXTENSION, DATA, DATA_END, TRAILER_START, TRAILER } at;
    uint64_t left;     /* bytes left of the body, or of this chunk */
    uint64_t received; /* payload bytes so far */
};

static inline void body_start(struct body *b, const char *head, size_t length, bool until_close) {
    const char *coding = field(head, length, "transfer-encoding:");
    const char *size = field(head, length, "content-length:");
    memset(b, 0, sizeof *b);
    if (coding && !strncasecmp(coding, "chunked", 7))
        b->chunked = true;
    else if (size)
        b->left = strtoull(size, NULL, 10);
    else if (until_close)
        b->left = UINT64_MAX;
    b->done = !b->chunked && !b->left;
}

/* Takes body bytes from data; returns how many of them belonged to the body. */
static inline size_t body_feed(struct body *b, const char *data, size_t length) {
    size_t used = 0;
    if (!b->chunked) {
        used = b->left < length ? b->left : length;
        b->left -= used;
        b->received += used;
        b->done = !b->left;
        return used;
    }
    while (used < length && !b->done) {
        char c = data[used];
        switch (b->at) {
        case SIZE:
            used++;
            if (c >= '0' && c <= '9') b->left = b->left * 16 + (c - '0');
            else if ((c | 32) >= 'a' && (c | 32) <= 'f') b->left = b->left * 16 + ((c | 32) - 'a' + 10);
            else if (c == '\n') b->at = b->left ? DATA : TRAILER_START;
            else b->at = EXTENSION;
            break;
        case EXTENSION:
            used++;
            if (c == '\n') b->at = b->left ? DATA : TRAILER_START;
            break;
        case DATA: {
            size_t n = b->left < length - used ? b->left : length - used;
            used += n;
            b->left -= n;
            b->received += n;
            if (!b->left) b->at = DATA_END;
            break;
        }
        case DATA_END:
            used++;
            if (c == '\n') b->at = SIZE;
            break;
        case TRAILER_START:
            used++;
            if (c == '\n') b->done = true;
            else if (c != '\r') b->at = TRAILER;
            break;
        case TRAILER:
            used++;
            if (c == '\n') b->at = TRAILER_START;
            break;
        }
    }
    return used;
}

#endif
