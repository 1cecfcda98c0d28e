/* A library for LD_PRELOAD that makes chosen system calls fail.
 *
 * Beside the library lie two files. "rule" holds one line: CALL ERRNO NTH TIMES SECONDS PROCESS PREFIX
 *   ERRNO    0: it does not fail; the process stops itself before it (SIGSTOP), until somebody has it go on
 *   CALL     open, stat, fstat, access, read, pread, write, pwrite, fsync, fdatasync, ftruncate, close, rename, unlink,
 *            rmdir, mkdir, link, chmod, readdir, statvfs, flock, fcntl, epoll, thread
 *   NTH      the call that fails first, counted over all processes; 0: none fails, and calls are only counted
 *   TIMES    how many in a row fail; 0: as many as come within SECONDS of the first
 *   PROCESS  daemon (the one that was started), reader (its children), any
 *   PREFIX   how the path begins that the call touches ("pipe:", "anon_inode:" for what has none); "-": any
 * "state" is mapped by all processes and holds what was counted: three numbers of 64 bits (calls, failed, the time of
 * the first failure) and, from byte 64, which call on which path failed last.
 *
 * For glibc 2.33 and later: before, stat had other names. A failing close has closed all the same, as on Linux.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct state {
    uint64_t calls, failed, since, spare[5];
    char last[PATH_MAX];
};

static struct state *state; /* NULL: no rule holds in this process */
static char rule_call[32], rule_prefix[PATH_MAX];
static int rule_error;
static unsigned long rule_nth, rule_times;
static double rule_seconds;

static uint64_t now(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void raise_stop(void)
{
    int before = errno;

    kill(getpid(), SIGSTOP);
    errno = before;
}

/* Whether the call on this path is to fail; errno is set then. */
static int fails_on(const char *call, const char *path)
{
    uint64_t number, expected = 0, at;

    if (strcmp(rule_prefix, "-") != 0 && strncmp(path, rule_prefix, strlen(rule_prefix)) != 0)
        return 0;
    number = __atomic_add_fetch(&state->calls, 1, __ATOMIC_SEQ_CST);
    if (rule_nth == 0 || number < rule_nth)
        return 0;
    if (rule_times != 0) {
        if (number >= rule_nth + rule_times)
            return 0;
    } else {
        at = now();
        if (!__atomic_compare_exchange_n(&state->since, &expected, at, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
            && (double)(at - expected) > rule_seconds * 1e9)
            return 0;
    }
    __atomic_add_fetch(&state->failed, 1, __ATOMIC_SEQ_CST);
    snprintf(state->last, sizeof state->last, "%s %s", call, path);
    if (rule_error == 0) {
        raise_stop();
        return 0;
    }
    errno = rule_error;
    return 1;
}

static int is_ruled(const char *call)
{
    return state != NULL && strcmp(call, rule_call) == 0;
}

static int path_of(int descriptor, char *path)
{
    char link[64];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
    return length >= 0;
}

static int fails_fd(const char *call, int descriptor)
{
    char path[PATH_MAX];
    int before = errno;

    if (!is_ruled(call))
        return 0;
    path_of(descriptor, path);
    errno = before;
    return fails_on(call, path);
}

static int fails_at(const char *call, int folder, const char *name)
{
    char path[2 * PATH_MAX];
    int before = errno;

    if (!is_ruled(call) || name == NULL)
        return 0;
    if (name[0] == '/')
        snprintf(path, sizeof path, "%s", name);
    else {
        if (folder == AT_FDCWD ? getcwd(path, PATH_MAX) == NULL : !path_of(folder, path))
            path[0] = '\0';
        if (name[0] != '\0')
            snprintf(path + strlen(path), PATH_MAX, "/%s", name);
    }
    errno = before;
    return fails_on(call, path);
}

static int fails_plain(const char *call)
{
    return is_ruled(call) && fails_on(call, "-");
}

__attribute__((constructor)) static void begin(void)
{
    char beside[PATH_MAX + 16], commands[4096], process[16], *slash;
    int descriptor, is_reader;
    ssize_t length, at;
    void *page;
    FILE *file;
    Dl_info here;

    if (!dladdr((void *)begin, &here) || (slash = strrchr(here.dli_fname, '/')) == NULL)
        return;
    if ((descriptor = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC)) < 0)
        return;
    length = read(descriptor, commands, sizeof commands - 1);
    close(descriptor);
    if (length <= 0)
        return;
    for (at = 0; at < length; at++)
        if (commands[at] == '\0')
            commands[at] = ' ';
    commands[length] = '\0';
    if (strstr(commands, "ingestd") == NULL)
        return;
    is_reader = strstr(commands, "ingestd.reader") != NULL;
    snprintf(beside, sizeof beside, "%.*s/rule", (int)(slash - here.dli_fname), here.dli_fname);
    if ((file = fopen(beside, "re")) == NULL)
        return;
    if (fscanf(file, "%31s %d %lu %lu %lf %15s %4095[^\n]", rule_call, &rule_error, &rule_nth, &rule_times,
               &rule_seconds, process, rule_prefix) != 7) {
        fputs("failing.c: the rule cannot be read\n", stderr);
        _exit(99);
    }
    fclose(file);
    if (strcmp(process, "any") != 0 && is_reader != (strcmp(process, "reader") == 0))
        return;
    snprintf(beside, sizeof beside, "%.*s/state", (int)(slash - here.dli_fname), here.dli_fname);
    if ((descriptor = open(beside, O_RDWR | O_CLOEXEC)) < 0)
        return;
    page = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (page != MAP_FAILED)
        state = page;
}

#define REAL(name)                                                                                                     \
    static __typeof__(name) *real;                                                                                     \
    if (real == NULL)                                                                                                  \
    real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define FAILS(type, name, fails, failed, parameters, arguments)                                                        \
    type name parameters                                                                                               \
    {                                                                                                                  \
        REAL(name);                                                                                                    \
        return (fails) ? (failed) : real arguments;                                                                    \
    }

#define FAILS_FD(type, call, name, parameters, arguments)                                                              \
    FAILS(type, name, fails_fd(call, fd), -1, parameters, arguments)

#define FAILS_PATH(call, name, parameters, arguments)                                                                  \
    FAILS(int, name, fails_at(call, AT_FDCWD, path), -1, parameters, arguments)

#define FAILS_AT(call, name, parameters, arguments)                                                                    \
    FAILS(int, name, fails_at(call, folder, path), -1, parameters, arguments)

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        va_list more;                                                                                                  \
        mode_t mode = 0;                                                                                               \
        REAL(name);                                                                                                    \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_start(more, flags);                                                                                     \
            mode = va_arg(more, mode_t);                                                                               \
            va_end(more);                                                                                              \
        }                                                                                                              \
        return fails_at("open", AT_FDCWD, path) ? -1 : real(path, flags, mode);                                        \
    }

#define OPEN_AT(name)                                                                                                  \
    int name(int folder, const char *path, int flags, ...)                                                             \
    {                                                                                                                  \
        va_list more;                                                                                                  \
        mode_t mode = 0;                                                                                               \
        REAL(name);                                                                                                    \
        if (flags & (O_CREAT | O_TMPFILE)) {                                                                           \
            va_start(more, flags);                                                                                     \
            mode = va_arg(more, mode_t);                                                                               \
            va_end(more);                                                                                              \
        }                                                                                                              \
        return fails_at("open", folder, path) ? -1 : real(folder, path, flags, mode);                                  \
    }

#define FCNTL(name)                                                                                                    \
    int name(int fd, int command, ...)                                                                                 \
    {                                                                                                                  \
        va_list more;                                                                                                  \
        void *argument;                                                                                                \
        REAL(name);                                                                                                    \
        va_start(more, command);                                                                                       \
        argument = va_arg(more, void *);                                                                               \
        va_end(more);                                                                                                  \
        return fails_fd("fcntl", fd) ? -1 : real(fd, command, argument);                                               \
    }

/* Of two names, the one that moves, or the one that it gets. */
#define TWO_NAMES(call, name, parameters, arguments, first_folder, first, second_folder, second)                       \
    FAILS(int, name, fails_at(call, first_folder, first) || fails_at(call, second_folder, second), -1, parameters,     \
          arguments)

OPEN(open)
OPEN(open64)
OPEN_AT(openat)
OPEN_AT(openat64)
FCNTL(fcntl)
FCNTL(fcntl64)

FAILS_PATH("stat", stat, (const char *path, struct stat *found), (path, found))
FAILS_PATH("stat", stat64, (const char *path, struct stat64 *found), (path, found))
FAILS_PATH("stat", lstat, (const char *path, struct stat *found), (path, found))
FAILS_PATH("stat", lstat64, (const char *path, struct stat64 *found), (path, found))
FAILS_AT("stat", fstatat, (int folder, const char *path, struct stat *found, int flags), (folder, path, found, flags))
FAILS_AT("stat", fstatat64, (int folder, const char *path, struct stat64 *found, int flags),
         (folder, path, found, flags))
FAILS_AT("stat", statx, (int folder, const char *path, int flags, unsigned mask, struct statx *found),
         (folder, path, flags, mask, found))
FAILS_FD(int, "fstat", fstat, (int fd, struct stat *found), (fd, found))
FAILS_FD(int, "fstat", fstat64, (int fd, struct stat64 *found), (fd, found))
FAILS_PATH("access", access, (const char *path, int mode), (path, mode))
FAILS_AT("access", faccessat, (int folder, const char *path, int mode, int flags), (folder, path, mode, flags))
FAILS_PATH("statvfs", statvfs, (const char *path, struct statvfs *found), (path, found))
FAILS_PATH("statvfs", statvfs64, (const char *path, struct statvfs64 *found), (path, found))
FAILS_FD(int, "statvfs", fstatvfs, (int fd, struct statvfs *found), (fd, found))
FAILS_FD(int, "statvfs", fstatvfs64, (int fd, struct statvfs64 *found), (fd, found))

FAILS_FD(ssize_t, "read", read, (int fd, void *buffer, size_t count), (fd, buffer, count))
FAILS_FD(ssize_t, "read", readv, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FAILS_FD(ssize_t, "pread", pread, (int fd, void *buffer, size_t count, off_t at), (fd, buffer, count, at))
FAILS_FD(ssize_t, "pread", pread64, (int fd, void *buffer, size_t count, off64_t at), (fd, buffer, count, at))
FAILS_FD(ssize_t, "pread", preadv, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
FAILS_FD(ssize_t, "pread", preadv64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
FAILS_FD(ssize_t, "write", write, (int fd, const void *buffer, size_t count), (fd, buffer, count))
FAILS_FD(ssize_t, "write", writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
FAILS_FD(ssize_t, "pwrite", pwrite, (int fd, const void *buffer, size_t count, off_t at), (fd, buffer, count, at))
FAILS_FD(ssize_t, "pwrite", pwrite64, (int fd, const void *buffer, size_t count, off64_t at), (fd, buffer, count, at))
FAILS_FD(int, "fsync", fsync, (int fd), (fd))
FAILS_FD(int, "fdatasync", fdatasync, (int fd), (fd))
FAILS_FD(int, "ftruncate", ftruncate, (int fd, off_t length), (fd, length))
FAILS_FD(int, "ftruncate", ftruncate64, (int fd, off64_t length), (fd, length))
FAILS_FD(int, "flock", flock, (int fd, int operation), (fd, operation))
FAILS_FD(int, "chmod", fchmod, (int fd, mode_t mode), (fd, mode))
FAILS_PATH("chmod", chmod, (const char *path, mode_t mode), (path, mode))

FAILS_PATH("unlink", unlink, (const char *path), (path))
FAILS_AT("unlink", unlinkat, (int folder, const char *path, int flags), (folder, path, flags))
FAILS_PATH("rmdir", rmdir, (const char *path), (path))
FAILS_PATH("mkdir", mkdir, (const char *path, mode_t mode), (path, mode))
FAILS_AT("mkdir", mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode))
TWO_NAMES("rename", rename, (const char *from, const char *to), (from, to), AT_FDCWD, from, AT_FDCWD, to)
TWO_NAMES("rename", renameat, (int from_folder, const char *from, int to_folder, const char *to),
          (from_folder, from, to_folder, to), from_folder, from, to_folder, to)
TWO_NAMES("rename", renameat2, (int from_folder, const char *from, int to_folder, const char *to, unsigned flags),
          (from_folder, from, to_folder, to, flags), from_folder, from, to_folder, to)
TWO_NAMES("link", link, (const char *from, const char *to), (from, to), AT_FDCWD, from, AT_FDCWD, to)
TWO_NAMES("link", linkat, (int from_folder, const char *from, int to_folder, const char *to, int flags),
          (from_folder, from, to_folder, to, flags), from_folder, from, to_folder, to)

FAILS(struct dirent *, readdir, fails_fd("readdir", dirfd(folder)), NULL, (DIR * folder), (folder))
FAILS(struct dirent64 *, readdir64, fails_fd("readdir", dirfd(folder)), NULL, (DIR * folder), (folder))

FAILS(int, epoll_create1, fails_plain("epoll"), -1, (int flags), (flags))
FAILS(int, epoll_ctl, fails_plain("epoll"), -1, (int fd, int operation, int about, struct epoll_event *event),
      (fd, operation, about, event))
FAILS(int, epoll_wait, fails_plain("epoll"), -1, (int fd, struct epoll_event *events, int most, int milliseconds),
      (fd, events, most, milliseconds))
FAILS(int, pthread_create, fails_plain("thread"), rule_error,
      (pthread_t * thread, const pthread_attr_t *attributes, void *(*work)(void *), void *argument),
      (thread, attributes, work, argument))

int close(int fd)
{
    REAL(close);
    int fails = fails_fd("close", fd), error = errno, closed = real(fd);

    if (fails)
        errno = error;
    return fails ? -1 : closed;
}
