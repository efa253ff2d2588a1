/* Writes down what a program does to the files below one directory, in order: for tests/power.rs.
 *
 * Preloaded (ld.so(8)) into the real daemon. POWER_DIR is the directory, POWER_TRACE the file that takes the record;
 * each entry is one line, and after W its bytes:
 *
 *   C INODE PATH   a file was created      W INODE OFFSET LENGTH   bytes were written
 *   M PATH         a directory was made    T INODE LENGTH          it was cut or grown
 *   R FROM\tTO     renamed                 U PATH                  removed
 *   B INODE ID     a sync began            E ID RESULT             it ended
 *   D PATH ID      a directory's sync began
 *
 * Everything but a sync is done and written down under one lock, so the order is the real one. A sync covers what stands
 * before its beginning. Never changes what a call does or answers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -2;
static const char *dir;
static size_t dir_length;
static unsigned long syncs;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void start(void) {
    if (trace != -2) return;
    dir = getenv("POWER_DIR");
    const char *path = getenv("POWER_TRACE");
    trace = dir && path ? REAL(open)(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    dir_length = dir ? strlen(dir) : 0;
}

static int ours(const char *path) {
    return trace >= 0 && strncmp(path, dir, dir_length) == 0 && (path[dir_length] == '/' || path[dir_length] == 0);
}

/* The path behind a descriptor, if it is below our directory. */
static int ours_open(int fd, char path[4096]) {
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = trace >= 0 && fd != trace ? readlink(link, path, 4095) : -1;
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return ours(path);
}

static unsigned long inode(int fd) {
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

static void say(const void *bytes, size_t length, const char *form, ...) {
    char line[9000];
    va_list rest;
    int saved = errno;
    va_start(rest, form);
    int size = vsnprintf(line, sizeof line, form, rest);
    va_end(rest);
    struct iovec parts[2] = {{line, size}, {(void *)bytes, length}};
    if (REAL(writev)(trace, parts, bytes ? 2 : 1) != (ssize_t)(size + length)) abort();
    errno = saved;
}

static int opened(const char *path, int flags, mode_t mode) {
    pthread_mutex_lock(&lock);
    start();
    int mine = ours(path) && (flags & (O_CREAT | O_TRUNC));
    struct stat st;
    int was = mine && stat(path, &st) == 0;
    int fd = REAL(open64)(path, flags, mode);
    if (mine && fd >= 0) {
        if (!was && (flags & O_CREAT)) say(NULL, 0, "C %lu %s\n", inode(fd), path);
        else if (flags & O_TRUNC) say(NULL, 0, "T %lu 0\n", inode(fd));
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return opened(path, flags, mode);
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t at) {
    char path[4096];
    pthread_mutex_lock(&lock);
    start();
    ssize_t done = REAL(pwrite64)(fd, bytes, length, at);
    if (done > 0 && ours_open(fd, path)) say(bytes, done, "W %lu %lld %zd\n", inode(fd), (long long)at, done);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    char path[4096];
    start();
    if (!ours_open(fd, path)) return REAL(write)(fd, bytes, length);
    pthread_mutex_lock(&lock);
    off_t end = fcntl(fd, F_GETFL) & O_APPEND ? lseek(fd, 0, SEEK_END) : lseek(fd, 0, SEEK_CUR);
    ssize_t done = REAL(write)(fd, bytes, length);
    if (done > 0) say(bytes, done, "W %lu %lld %zd\n", inode(fd), (long long)end, done);
    pthread_mutex_unlock(&lock);
    return done;
}

static int synced(int fd, int (*sync)(int)) {
    char path[4096];
    pthread_mutex_lock(&lock);
    start();
    int mine = ours_open(fd, path);
    unsigned long id = ((unsigned long)getpid() << 32) + ++syncs;
    struct stat st;
    if (mine && fstat(fd, &st) == 0) {
        if (S_ISDIR(st.st_mode)) say(NULL, 0, "D %s %lu\n", path, id);
        else say(NULL, 0, "B %lu %lu\n", (unsigned long)st.st_ino, id);
    }
    pthread_mutex_unlock(&lock);
    int result = sync(fd);
    pthread_mutex_lock(&lock);
    if (mine) say(NULL, 0, "E %lu %d\n", id, result);
    pthread_mutex_unlock(&lock);
    return result;
}

int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }
int fsync(int fd) { return synced(fd, REAL(fsync)); }

int ftruncate64(int fd, off64_t length) {
    char path[4096];
    pthread_mutex_lock(&lock);
    start();
    int result = REAL(ftruncate64)(fd, length);
    if (result == 0 && ours_open(fd, path)) say(NULL, 0, "T %lu %lld\n", inode(fd), (long long)length);
    pthread_mutex_unlock(&lock);
    return result;
}

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    start();
    int result = REAL(rename)(from, to);
    if (result == 0 && ours(from)) say(NULL, 0, "R %s\t%s\n", from, to);
    pthread_mutex_unlock(&lock);
    return result;
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    start();
    int result = REAL(unlink)(path);
    if (result == 0 && ours(path)) say(NULL, 0, "U %s\n", path);
    pthread_mutex_unlock(&lock);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    start();
    int result = REAL(mkdir)(path, mode);
    if (result == 0 && ours(path)) say(NULL, 0, "M %s\n", path);
    pthread_mutex_unlock(&lock);
    return result;
}
