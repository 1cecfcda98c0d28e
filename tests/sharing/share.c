/* A folder seen through a mount of its own, as one of several hosts sees a share: share SOURCE MOUNTPOINT SECONDS.
 *
 * The mount has a device number of its own, the files their inode numbers, and what the kernel was told of names,
 * missing ones too, and attributes it believes for SECONDS. A line on stdin switches a fault, "ok" is the answer:
 *
 *     lost CALL TIMES ERRNO     the next so many such calls (rename link mkdir unlink create) are done, and say ERRNO
 *     all ERRNO                 every call says this, and does nothing; 0: no more
 *     hang 0|1                  every call waits until this is over
 *     readonly 0|1              what writes says EROFS
 *     empty 0|1                 the root has no entries
 *     norename 0|1, nolink 0|1  renameat2's flags (EINVAL, as NFS says), and hard links (EPERM), are not known here
 *     forget                    the kernel is to ask anew for the names in the root
 *
 * The end of stdin ends every fault and the mount.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

enum call { RENAME, LINK, MKDIR, UNLINK, CREATE, CALLS };
static const char *const call_names[CALLS] = {"rename", "link", "mkdir", "unlink", "create"};

static int source;
static const char *mountpoint;
static double seconds;
static struct fuse *whole;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int hangs, all_say, is_read_only, is_empty, no_flags, no_links;
static struct { int left, says; } lost[CALLS];

/* Begin a call: 0, or what it says instead of being done. */
static int begin(const char *path, int writes)
{
    pthread_mutex_lock(&lock);
    while (hangs)
        pthread_cond_wait(&changed, &lock);
    int error = all_say;
    if (!error && is_empty && path && strcmp(path, "/"))
        error = ENOENT;
    if (!error && is_read_only && writes)
        error = EROFS;
    pthread_mutex_unlock(&lock);
    return -error;
}

/* End a call that was done: what it says of that. */
static int done(enum call call, int result)
{
    if (result < 0)
        return -errno;
    pthread_mutex_lock(&lock);
    int says = 0;
    if (lost[call].left > 0) {
        lost[call].left--;
        says = lost[call].says;
    }
    pthread_mutex_unlock(&lock);
    return -says;
}

static const char *below(const char *path)
{
    return path[1] ? path + 1 : ".";
}

#define BEGIN(path, writes) do { int no = begin(path, writes); if (no) return no; } while (0)
#define ANSWER(result) return (result) < 0 ? -errno : 0

static int sh_getattr(const char *path, struct stat *found, struct fuse_file_info *file)
{
    BEGIN(path, 0);
    ANSWER(file ? fstat((int)file->fh, found) : fstatat(source, below(path), found, AT_SYMLINK_NOFOLLOW));
}

static int sh_access(const char *path, int mode)
{
    BEGIN(path, mode & W_OK);
    ANSWER(faccessat(source, below(path), mode, 0));
}

static int sh_readlink(const char *path, char *target, size_t size)
{
    BEGIN(path, 0);
    ssize_t length = readlinkat(source, below(path), target, size - 1);
    if (length >= 0)
        target[length] = 0;
    ANSWER(length);
}

static int sh_opendir(const char *path, struct fuse_file_info *file)
{
    BEGIN(path, 0);
    int descriptor = openat(source, below(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = descriptor < 0 ? NULL : fdopendir(descriptor);
    if (!folder)
        return -errno;
    file->fh = (uint64_t)(uintptr_t)folder;
    return 0;
}

static int sh_readdir(const char *path, void *list, fuse_fill_dir_t fill, off_t offset, struct fuse_file_info *file,
                      enum fuse_readdir_flags flags)
{
    (void)flags;
    BEGIN(path, 0);
    DIR *folder = (DIR *)(uintptr_t)file->fh;
    seekdir(folder, offset);
    struct dirent *entry;
    while (!is_empty && (entry = readdir(folder))) {
        struct stat found;
        if (fstatat(dirfd(folder), entry->d_name, &found, AT_SYMLINK_NOFOLLOW))
            continue;
        /* With its attributes: what the kernel had of the name before, or that it was missing, is forgotten. */
        if (fill(list, entry->d_name, &found, entry->d_off, FUSE_FILL_DIR_PLUS))
            break;
    }
    return 0;
}

static int sh_releasedir(const char *path, struct fuse_file_info *file)
{
    (void)path;
    closedir((DIR *)(uintptr_t)file->fh);
    return 0;
}

static int sh_fsyncdir(const char *path, int data_only, struct fuse_file_info *file)
{
    (void)data_only;
    BEGIN(path, 0);
    ANSWER(fsync(dirfd((DIR *)(uintptr_t)file->fh)));
}

static int sh_mkdir(const char *path, mode_t mode)
{
    BEGIN(path, 1);
    return done(MKDIR, mkdirat(source, below(path), mode));
}

static int sh_unlink(const char *path)
{
    BEGIN(path, 1);
    return done(UNLINK, unlinkat(source, below(path), 0));
}

static int sh_rmdir(const char *path)
{
    BEGIN(path, 1);
    ANSWER(unlinkat(source, below(path), AT_REMOVEDIR));
}

static int sh_rename(const char *from, const char *to, unsigned flags)
{
    BEGIN(from, 1);
    if (flags && no_flags)
        return -EINVAL;
    return done(RENAME, renameat2(source, below(from), source, below(to), flags));
}

static int sh_link(const char *from, const char *to)
{
    BEGIN(from, 1);
    if (no_links)
        return -EPERM;
    return done(LINK, linkat(source, below(from), source, below(to), 0));
}

static int sh_chmod(const char *path, mode_t mode, struct fuse_file_info *file)
{
    BEGIN(path, 1);
    ANSWER(file ? fchmod((int)file->fh, mode) : fchmodat(source, below(path), mode, 0));
}

static int sh_truncate(const char *path, off_t size, struct fuse_file_info *file)
{
    BEGIN(path, 1);
    if (file)
        ANSWER(ftruncate((int)file->fh, size));
    int descriptor = openat(source, below(path), O_WRONLY | O_CLOEXEC);
    if (descriptor < 0)
        return -errno;
    int error = ftruncate(descriptor, size) ? -errno : 0;
    close(descriptor);
    return error;
}

static int sh_utimens(const char *path, const struct timespec times[2], struct fuse_file_info *file)
{
    BEGIN(path, 1);
    ANSWER(file ? futimens((int)file->fh, times) : utimensat(source, below(path), times, AT_SYMLINK_NOFOLLOW));
}

static int sh_open(const char *path, struct fuse_file_info *file)
{
    BEGIN(path, (file->flags & O_ACCMODE) != O_RDONLY);
    int descriptor = openat(source, below(path), (file->flags & ~O_NOFOLLOW) | O_CLOEXEC);
    if (descriptor < 0)
        return -errno;
    file->fh = (uint64_t)descriptor;
    return 0;
}

static int sh_create(const char *path, mode_t mode, struct fuse_file_info *file)
{
    BEGIN(path, 1);
    int descriptor = openat(source, below(path), file->flags | O_CREAT | O_CLOEXEC, mode);
    int error = done(CREATE, descriptor);
    if (error && descriptor >= 0)
        close(descriptor);
    file->fh = (uint64_t)descriptor;
    return error;
}

static int sh_read(const char *path, char *bytes, size_t size, off_t offset, struct fuse_file_info *file)
{
    BEGIN(path, 0);
    ssize_t got = pread((int)file->fh, bytes, size, offset);
    return got < 0 ? -errno : (int)got;
}

static int sh_write(const char *path, const char *bytes, size_t size, off_t offset, struct fuse_file_info *file)
{
    BEGIN(path, 1);
    ssize_t put = pwrite((int)file->fh, bytes, size, offset);
    return put < 0 ? -errno : (int)put;
}

static off_t sh_lseek(const char *path, off_t offset, int whence, struct fuse_file_info *file)
{
    BEGIN(path, 0);
    off_t at = lseek((int)file->fh, offset, whence);
    return at < 0 ? -errno : at;
}

static int sh_release(const char *path, struct fuse_file_info *file)
{
    (void)path;
    close((int)file->fh);
    return 0;
}

static int sh_fsync(const char *path, int data_only, struct fuse_file_info *file)
{
    BEGIN(path, 0);
    ANSWER(data_only ? fdatasync((int)file->fh) : fsync((int)file->fh));
}

static int sh_statfs(const char *path, struct statvfs *found)
{
    BEGIN(path, 0);
    ANSWER(fstatvfs(source, found));
}

static void forget(void)
{
    DIR *folder = fdopendir(openat(source, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct dirent *entry;
    while (folder && (entry = readdir(folder)))
        fuse_lowlevel_notify_inval_entry(fuse_get_session(whole), FUSE_ROOT_ID, entry->d_name, strlen(entry->d_name));
    if (folder)
        closedir(folder);
}

static void turn(char *line)
{
    char word[16] = "", what[16] = "";
    int first = 0, second = 0;
    if (sscanf(line, "lost %15s %d %d", what, &first, &second) == 3) {
        for (int call = 0; call < CALLS; call++)
            if (!strcmp(what, call_names[call]))
                lost[call].left = first, lost[call].says = second;
        return;
    }
    sscanf(line, "%15s %d", word, &first);
    int *const switches[] = {&hangs, &all_say, &is_read_only, &is_empty, &no_flags, &no_links};
    static const char *const names[] = {"hang", "all", "readonly", "empty", "norename", "nolink"};
    for (int each = 0; each < 6; each++)
        if (!strcmp(word, names[each]))
            *switches[each] = first;
}

static void *listen_to(void *unused)
{
    (void)unused;
    char line[128];
    while (fgets(line, sizeof line, stdin)) {
        pthread_mutex_lock(&lock);
        turn(line);
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        if (!strncmp(line, "forget", 6))
            forget();
        puts("ok");
        fflush(stdout);
    }
    pthread_mutex_lock(&lock);
    hangs = 0, all_say = EIO;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pid_t child = fork();
    if (!child) {
        execlp("fusermount3", "fusermount3", "-uz", mountpoint, (char *)NULL);
        _exit(1);
    }
    waitpid(child, NULL, 0);
    _exit(0);
}

static void *sh_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    (void)connection;
    config->use_ino = config->readdir_ino = config->nullpath_ok = config->hard_remove = 1;
    config->attr_timeout = config->entry_timeout = config->negative_timeout = seconds;
    whole = fuse_get_context()->fuse;
    pthread_t thread;
    pthread_create(&thread, NULL, listen_to, NULL);
    return NULL;
}

static const struct fuse_operations operations = {
    .init = sh_init, .getattr = sh_getattr, .access = sh_access, .readlink = sh_readlink, .readdir = sh_readdir,
    .mkdir = sh_mkdir, .unlink = sh_unlink, .rmdir = sh_rmdir, .rename = sh_rename, .link = sh_link,
    .chmod = sh_chmod, .truncate = sh_truncate, .utimens = sh_utimens, .open = sh_open, .create = sh_create,
    .read = sh_read, .write = sh_write, .lseek = sh_lseek, .release = sh_release, .fsync = sh_fsync,
    .opendir = sh_opendir, .releasedir = sh_releasedir, .fsyncdir = sh_fsyncdir, .statfs = sh_statfs,
};

int main(int count, char **words)
{
    if (count != 4 || (source = open(words[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        return 2;
    mountpoint = words[2];
    seconds = atof(words[3]);
    umask(0);
    char *own[] = {words[0], "-f", words[2], NULL};
    return fuse_main(3, own, &operations, NULL);
}
