/* A null STOW-RS sink: it reads each body at full speed, names every SOP Instance UID it was sent, and keeps nothing.
 *
 * Usage: sink PORT DELAY_MS [PEM]   (port 0: any free one; prints "listening PORT" on its standard output)
 *
 * With PEM, a file with a certificate and its key, it speaks TLS; for that it is built with -DTLS -lssl -lcrypto.
 *
 * POST .../studies[/UID]      multipart/related or one application/dicom; answers 200 with a Referenced SOP Sequence
 * GET  .../changefeed         [] - so that a client takes it for a server that refuses duplicates
 * GET  .../changefeed/latest  204
 * GET  .../studies...         204 for a search, 404 for an instance
 * GET  /count                 {"requests":n,"instances":n,"bytes":n,"seconds":s,"handshakes":n,"resumed":n}; seconds is
 *                             the sum, over the stored requests, from the request's last header byte to the last byte
 *                             of the answer; the rest is counted before the answer. Handshakes, full and resumed, are
 *                             those of connections that asked for more than this.
 *
 * A part begins behind a line that is "--", the boundary of the header's value, and padding; the same bytes elsewhere
 * are content (RFC 2046 section 5.1.1). Bodies may have a Content-Length or be chunked. A body that ends early gets no
 * answer, one that holds a part without a UID gets 400; neither counts. One thread per connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/ssl.h>
#else
typedef void SSL;
#endif

#define RAW_BYTES (64 << 10)
#define WINDOW_BYTES (512 << 10)
#define HEAD_BYTES (4 << 10) /* a part's headers and File Meta lie well within */
#define LINE_BYTES 256       /* behind a boundary, its padding and line end lie within */
#define UID_BYTES 64

static int delay_ms;
static pthread_mutex_t totals_lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t total_requests, total_instances, total_bytes, total_handshakes, total_resumed;
static double total_seconds;

struct connection {
    int fd;
    SSL *tls;     /* NULL: plain */
    int resumed;
    char raw[RAW_BYTES]; /* what was received and not yet used: [start, end) */
    size_t start, end;
};

struct body {
    struct connection *connection;
    int chunked, ended, first_chunk_seen;
    uint64_t left; /* of the body, or of the current chunk */
    uint64_t seen;
};

struct window { /* a sliding view of the body: [start, end) of bytes */
    struct body *body;
    char *bytes;
    size_t start, end;
    int ended, broken;
};

struct text {
    char *bytes;
    size_t length, capacity;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void add(struct text *text, const char *format, ...) {
    for (;;) {
        va_list arguments;
        va_start(arguments, format);
        size_t room = text->capacity - text->length;
        int wanted = vsnprintf(text->bytes ? text->bytes + text->length : NULL, room, format, arguments);
        va_end(arguments);
        if (wanted >= 0 && (size_t)wanted < room) {
            text->length += (size_t)wanted;
            return;
        }
        text->capacity = (text->capacity + (size_t)wanted + 1) * 2;
        text->bytes = realloc(text->bytes, text->capacity);
        if (!text->bytes) abort();
    }
}

static ssize_t receive(struct connection *c, char *into, size_t most) {
#ifdef TLS
    if (c->tls) return SSL_read(c->tls, into, (int)most);
#endif
    ssize_t got;
    do got = recv(c->fd, into, most, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

static int send_all(struct connection *c, const char *bytes, size_t length, int flags) {
#ifdef TLS
    if (c->tls) return length && SSL_write(c->tls, bytes, (int)length) <= 0 ? -1 : 0;
#endif
    while (length) {
        ssize_t sent = send(c->fd, bytes, length, MSG_NOSIGNAL | flags);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return -1;
        bytes += sent;
        length -= (size_t)sent;
    }
    return 0;
}

/* Read one request head into `head` (NUL-terminated). 0 on success, -1 at the end of the connection. */
static int read_head(struct connection *c, char *head, size_t capacity) {
    for (;;) {
        char *stop = memmem(c->raw + c->start, c->end - c->start, "\r\n\r\n", 4);
        if (stop) {
            size_t length = (size_t)(stop - (c->raw + c->start)) + 2;
            if (length >= capacity) return -1;
            memcpy(head, c->raw + c->start, length);
            head[length] = 0;
            c->start += length + 2;
            return 0;
        }
        if (c->start) {
            memmove(c->raw, c->raw + c->start, c->end - c->start);
            c->end -= c->start;
            c->start = 0;
        }
        if (c->end == RAW_BYTES) return -1;
        ssize_t got = receive(c, c->raw + c->end, RAW_BYTES - c->end);
        if (got <= 0) return -1;
        c->end += (size_t)got;
    }
}

/* Copy a header's value into `value`; the name must end in a colon. Returns 0 when the head has none. */
static int header(const char *head, const char *name, char *value, size_t capacity) {
    size_t name_length = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line && line[2]; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, name, name_length)) continue;
        const char *from = line + 2 + name_length;
        from += strspn(from, " \t");
        size_t length = strcspn(from, "\r\n");
        if (length >= capacity) length = capacity - 1;
        memcpy(value, from, length);
        value[length] = 0;
        return 1;
    }
    return 0;
}

static int raw_line(struct connection *c, char *line, size_t capacity) {
    size_t length = 0;
    for (;;) {
        while (c->start < c->end) {
            char byte = c->raw[c->start++];
            if (byte == '\n') {
                if (length && line[length - 1] == '\r') length--;
                line[length] = 0;
                return 0;
            }
            if (length + 1 >= capacity) return -1;
            line[length++] = byte;
        }
        ssize_t got = receive(c, c->raw, RAW_BYTES);
        if (got <= 0) return -1;
        c->start = 0;
        c->end = (size_t)got;
    }
}

/* Next body bytes, chunked coding removed (RFC 9112 section 7.1). 0 at the end, -1 when the body broke off. */
static ssize_t read_body(struct body *b, char *into, size_t most) {
    struct connection *c = b->connection;
    if (b->ended) return 0;
    if (b->chunked && !b->left) {
        char line[256];
        if (b->first_chunk_seen && raw_line(c, line, sizeof line)) return -1; /* the CRLF behind the last chunk */
        if (raw_line(c, line, sizeof line)) return -1;
        b->first_chunk_seen = 1;
        b->left = strtoull(line, NULL, 16);
        if (!b->left) {
            do {
                if (raw_line(c, line, sizeof line)) return -1;
            } while (line[0]); /* trailers */
        }
    }
    if (!b->left) {
        b->ended = 1;
        return 0;
    }
    if (most > b->left) most = (size_t)b->left;
    ssize_t got;
    if (c->start < c->end) {
        got = (ssize_t)(c->end - c->start);
        if ((size_t)got > most) got = (ssize_t)most;
        memcpy(into, c->raw + c->start, (size_t)got);
        c->start += (size_t)got;
    } else {
        got = receive(c, into, most);
        if (got <= 0) return -1;
    }
    b->left -= (uint64_t)got;
    b->seen += (uint64_t)got;
    return got;
}

static void slide(struct window *w) {
    if (w->start) {
        memmove(w->bytes, w->bytes + w->start, w->end - w->start);
        w->end -= w->start;
        w->start = 0;
    }
    ssize_t got = read_body(w->body, w->bytes + w->end, WINDOW_BYTES - w->end);
    if (got <= 0) w->ended = 1;
    if (got < 0) w->broken = 1;
    if (got > 0) w->end += (size_t)got;
}

static void have(struct window *w, size_t length) {
    while (w->end - w->start < length && !w->ended) slide(w);
}

/* The value of a UI element in explicit VR little endian; where the tag is not found, that of implicit VR. */
static int uid_of(const char *bytes, size_t length, const char *tag, char *uid) {
    const unsigned char *hit = memmem(bytes, length, tag, 4);
    if (!hit || (size_t)(hit - (const unsigned char *)bytes) + 8 > length) return 0;
    size_t value_length = hit[4] == 'U' && hit[5] == 'I' ? (size_t)hit[6] | (size_t)hit[7] << 8
                                                         : (size_t)hit[4] | (size_t)hit[5] << 8;
    if (value_length > UID_BYTES || (size_t)(hit - (const unsigned char *)bytes) + 8 + value_length > length) return 0;
    memcpy(uid, hit + 8, value_length);
    uid[value_length] = 0;
    if (strspn(uid, "0123456789.") == 0) return 0;
    uid[strspn(uid, "0123456789.")] = 0;
    return 1;
}

static int name_instance(const char *bytes, size_t length, struct text *answer, unsigned *named) {
    char instance[UID_BYTES + 1], class[UID_BYTES + 1];
    if (!uid_of(bytes, length, "\x02\0\x03\0", instance) && !uid_of(bytes, length, "\x08\0\x18\0", instance)) return -1;
    if (!uid_of(bytes, length, "\x02\0\x02\0", class) && !uid_of(bytes, length, "\x08\0\x16\0", class)) class[0] = 0;
    add(answer,
        "%s{\"00081150\":{\"vr\":\"UI\",\"Value\":[\"%s\"]},\"00081155\":{\"vr\":\"UI\",\"Value\":[\"%s\"]},"
        "\"00741048\":{\"vr\":\"SQ\"}}",
        *named ? "," : "", class, instance);
    (*named)++;
    return 0;
}

/* What a line that begins with "--boundary" is, by what follows: 1 a delimiter, 2 the closing one, 0 neither. */
static int kind_of_line(const char *rest, size_t length) {
    int closing = length >= 2 && !memcmp(rest, "--", 2);
    size_t at = closing ? 2 : 0;
    while (at < length && at < LINE_BYTES && (rest[at] == ' ' || rest[at] == '\t')) at++;
    if (length - at >= 2 && !memcmp(rest + at, "\r\n", 2)) return 1 + closing;
    return closing && at == length ? 2 : 0; /* at the body's end no line end is due */
}

/* Go behind the next delimiter and say which it is; 0 when there is none. `line` is CRLF "--" boundary. */
static int next_delimiter(struct window *w, const char *line, size_t line_length) {
    for (;;) {
        char *hit = memmem(w->bytes + w->start, w->end - w->start, line, line_length);
        if (!hit) {
            if (w->ended) return 0;
            if (w->end - w->start > line_length) w->start = w->end - line_length;
            slide(w);
            continue;
        }
        w->start = (size_t)(hit - w->bytes);
        have(w, line_length + LINE_BYTES);
        w->start += line_length;
        int kind = kind_of_line(w->bytes + w->start, w->end - w->start);
        if (kind) return kind;
    }
}

/* How many of the bytes in view, at most HEAD_BYTES, belong to the part that begins there. */
static size_t part_in_view(struct window *w, const char *line, size_t line_length) {
    have(w, HEAD_BYTES + line_length + LINE_BYTES);
    const char *from = w->bytes + w->start, *end = w->bytes + w->end;
    size_t most = (size_t)(end - from) < HEAD_BYTES ? (size_t)(end - from) : HEAD_BYTES;
    for (const char *at = from; (at = memmem(at, (size_t)(end - at), line, line_length));) {
        if ((size_t)(at - from) >= most) break;
        if (kind_of_line(at + line_length, (size_t)(end - at) - line_length)) return (size_t)(at - from);
        at += line_length;
    }
    return most;
}

/* Name every part's instance. 0 when the closing delimiter was read, -1 when the body is not whole. */
static int read_parts(struct window *w, const char *line, struct text *answer, unsigned *named, unsigned *nameless) {
    size_t line_length = strlen(line);
    memcpy(w->bytes, "\r\n", 2); /* the body's first byte is at the start of a line, too */
    w->end = 2;
    int kind;
    while ((kind = next_delimiter(w, line, line_length)) == 1) {
        size_t length = part_in_view(w, line, line_length);
        if (name_instance(w->bytes + w->start, length, answer, named)) (*nameless)++;
    }
    if (!kind) return -1;
    while (!w->ended) {
        w->start = w->end;
        slide(w);
    }
    return w->broken ? -1 : 0;
}

static int read_single(struct window *w, struct text *answer, unsigned *named, unsigned *nameless) {
    have(w, HEAD_BYTES);
    if (name_instance(w->bytes + w->start, w->end - w->start, answer, named)) (*nameless)++;
    while (!w->ended) {
        w->start = w->end;
        slide(w);
    }
    return w->broken ? -1 : 0;
}

static int reply(struct connection *c, const char *status, const char *content_type, const char *content,
                 size_t length) {
    char head[512], date[64];
    time_t seconds = time(NULL);
    struct tm utc;
    gmtime_r(&seconds, &utc);
    strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", &utc);
    int head_length = snprintf(head, sizeof head,
                               "HTTP/1.1 %s\r\nDate: %s\r\nServer: null-sink\r\napi-supported-versions: 1, 2\r\n"
                               "%s%s%sContent-Length: %zu\r\n\r\n",
                               status, date, content_type[0] ? "Content-Type: " : "", content_type,
                               content_type[0] ? "\r\n" : "", length);
    if (send_all(c, head, (size_t)head_length, length ? MSG_MORE : 0)) return -1;
    return length ? send_all(c, content, length, 0) : 0;
}

/* Write what begins each delimiter's line: CRLF "--" and the boundary of a multipart Content-Type (RFC 9110 section
 * 5.6.6). Returns 0 when there is none. */
static int delimiter_of(const char *content_type, char *line, size_t capacity) {
    if (strncasecmp(content_type, "multipart/", 10)) return 0;
    size_t length = (size_t)snprintf(line, capacity, "\r\n--");
    const char *at = content_type + strcspn(content_type, ";");
    while (*at == ';') {
        at += 1 + strspn(at + 1, " \t");
        int wanted = !strncasecmp(at, "boundary=", 9);
        at += strcspn(at, "=;");
        if (*at != '=') continue;
        int quoted = *++at == '"';
        for (at += quoted; *at && !strchr(quoted ? "\"" : "; \t", *at); at++) {
            if (quoted && *at == '\\' && at[1]) at++;
            if (wanted && length + 1 < capacity) line[length++] = *at;
        }
        at += strcspn(at, ";");
        line[length] = 0;
        if (wanted) return length > 4;
    }
    return 0;
}

static void count_stored(unsigned instances, uint64_t bytes, double seconds) {
    pthread_mutex_lock(&totals_lock);
    if (instances) total_requests++;
    total_instances += instances;
    total_bytes += bytes;
    total_seconds += seconds;
    pthread_mutex_unlock(&totals_lock);
}

static int store(struct connection *c, const char *head, char *bytes) {
    double started = now();
    char value[1024], line[256];
    struct body body = {.connection = c};
    if (header(head, "Transfer-Encoding:", value, sizeof value) && strcasestr(value, "chunked")) body.chunked = 1;
    else if (header(head, "Content-Length:", value, sizeof value)) body.left = strtoull(value, NULL, 10);
    if (header(head, "Expect:", value, sizeof value) && strcasestr(value, "100-continue"))
        if (send_all(c, "HTTP/1.1 100 Continue\r\n\r\n", 25, 0)) return -1;
    int several = header(head, "Content-Type:", value, sizeof value) && delimiter_of(value, line, sizeof line);
    struct window window = {.body = &body, .bytes = bytes};
    struct text answer = {0};
    unsigned named = 0, nameless = 0;
    add(&answer, "{\"00081199\":{\"vr\":\"SQ\",\"Value\":[");
    int failed = several ? read_parts(&window, line, &answer, &named, &nameless)
                         : read_single(&window, &answer, &named, &nameless);
    if (!failed) {
        add(&answer, "]}}");
        if (delay_ms) {
            struct timespec pause = {delay_ms / 1000, (long)(delay_ms % 1000) * 1000000};
            while (nanosleep(&pause, &pause) && errno == EINTR) continue;
        }
        if (nameless || !named) failed = reply(c, "400 Bad Request", "text/plain", "a part without a UID", 20);
        else {
            count_stored(named, body.seen, 0); /* whoever has the answer finds it counted */
            failed = reply(c, "200 OK", "application/dicom+json; charset=utf-8", answer.bytes, answer.length);
            count_stored(0, 0, now() - started);
        }
    }
    free(answer.bytes);
    return failed ? -1 : 0;
}

static int answer_get(struct connection *c, const char *path) {
    size_t length = strcspn(path, "? ");
    if (length >= 11 && !strncmp(path + length - 11, "/changefeed", 11))
        return reply(c, "200 OK", "application/json; charset=utf-8", "[]", 2);
    if (length >= 18 && !strncmp(path + length - 18, "/changefeed/latest", 18)) return reply(c, "204 No Content", "", "", 0);
    if (length == 6 && !strncmp(path, "/count", 6)) {
        char counts[512];
        pthread_mutex_lock(&totals_lock);
        int count_length = snprintf(counts, sizeof counts,
                                    "{\"requests\":%llu,\"instances\":%llu,\"bytes\":%llu,\"seconds\":%.6f,"
                                    "\"handshakes\":%llu,\"resumed\":%llu}",
                                    (unsigned long long)total_requests, (unsigned long long)total_instances,
                                    (unsigned long long)total_bytes, total_seconds,
                                    (unsigned long long)total_handshakes, (unsigned long long)total_resumed);
        pthread_mutex_unlock(&totals_lock);
        return reply(c, "200 OK", "application/json", counts, (size_t)count_length);
    }
    if (memmem(path, length, "/studies", 8) && !memmem(path, length, "/instances/", 11)) return reply(c, "204 No Content", "", "", 0);
    return reply(c, "404 Not Found", "text/plain", "nothing is kept here", 20);
}

#ifdef TLS
static SSL_CTX *context; /* NULL: plain */

static int load_certificate(const char *pem) {
    context = SSL_CTX_new(TLS_server_method());
    if (!context) return -1;
    SSL_CTX_set_read_ahead(context, 1); /* one recv for several records */
    SSL_CTX_set_default_read_buffer_len(context, RAW_BYTES + 1024);
    return SSL_CTX_use_certificate_chain_file(context, pem) == 1 &&
                   SSL_CTX_use_PrivateKey_file(context, pem, SSL_FILETYPE_PEM) == 1
               ? 0
               : -1;
}

static int shake_hands(struct connection *c) {
    if (!context) return 0;
    c->tls = SSL_new(context);
    if (!c->tls || SSL_set_fd(c->tls, c->fd) != 1 || SSL_accept(c->tls) != 1) return -1;
    c->resumed = SSL_session_reused(c->tls);
    return 0;
}

static void end_tls(struct connection *c) {
    if (!c->tls) return;
    SSL_shutdown(c->tls);
    SSL_free(c->tls);
}
#else
static int load_certificate(const char *pem) {
    (void)pem;
    return -1;
}

static int shake_hands(struct connection *c) {
    (void)c;
    return 0;
}

static void end_tls(struct connection *c) {
    (void)c;
}
#endif

static void count_handshake(const struct connection *c) {
    pthread_mutex_lock(&totals_lock);
    total_handshakes++;
    total_resumed += (uint64_t)c->resumed;
    pthread_mutex_unlock(&totals_lock);
}

static void *serve(void *argument) {
    struct connection *c = argument;
    char *bytes = malloc(WINDOW_BYTES);
    char head[16 << 10];
    if (!bytes) abort();
    int counted = 0, failed = shake_hands(c);
    while (!failed && !read_head(c, head, sizeof head)) {
        char *path = strchr(head, ' ');
        if (!path) break;
        if (c->tls && !counted && strncmp(path, " /count ", 8)) {
            count_handshake(c);
            counted = 1;
        }
        failed = strncmp(head, "POST ", 5) ? answer_get(c, path + 1) : store(c, head, bytes);
    }
    end_tls(c);
    close(c->fd);
    free(bytes);
    free(c);
    return NULL;
}

int main(int count, char **words) {
    if (count != 3 && count != 4) {
        fprintf(stderr, "usage: sink PORT DELAY_MS [PEM]\n");
        return 2;
    }
    if (count == 4 && load_certificate(words[3])) {
        fprintf(stderr, "no TLS with %s\n", words[3]);
        return 1;
    }
    delay_ms = atoi(words[2]);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 256) ||
        getsockname(listener, (struct sockaddr *)&address, &length)) {
        perror("sink");
        return 1;
    }
    printf("listening %d\n", ntohs(address.sin_port));
    fflush(stdout);
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        pthread_t thread;
        if (!c) abort();
        c->fd = fd;
        if (pthread_create(&thread, &detached, serve, c)) {
            close(fd);
            free(c);
        }
    }
}
