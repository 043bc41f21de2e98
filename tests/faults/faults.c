// A library for LD_PRELOAD: counts the system calls that touch files below a folder, and makes one of them go wrong.
//
// faults_arm(folder, operations, number, what) starts counting from 0; call `number` goes wrong, others go through.
// `what` is an errno, SHORT (half of the bytes are written or read) or KILL (the process ends there, as by kill -9).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { SHORT = -1, KILL = -2 };
enum { WRITE = 1, READ = 2, NAME = 4 };

static char folder[PATH_MAX];
static int operations, wanted, what;
static int counted = -1;  // not armed
static char last[PATH_MAX + 64];

void faults_arm(const char *under, int which, int number, int error) {
    snprintf(folder, sizeof folder, "%s", under);
    operations = which, wanted = number, what = error, last[0] = 0;
    counted = 0;
}

// Returns how many calls were counted, and stops counting.
int faults_disarm(void) {
    int calls = counted;
    counted = -1;
    return calls;
}

// Returns the call that went wrong, for the message of a test that fails.
const char *faults_last(void) { return last; }

static int hit(int kind, const char *name, const char *path) {
    if (counted < 0 || !(operations & kind) || strncmp(path, folder, strlen(folder)) != 0) return 0;
    if (counted++ != wanted) return 0;
    snprintf(last, sizeof last, "%s of %s", name, path);
    if (what == KILL) kill(getpid(), SIGKILL);
    if (what > 0) errno = what;
    return what;
}

static int hit_file(int kind, const char *name, int file) {
    if (counted < 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return hit(kind, name, path);
}

static int hit_path(int kind, const char *name, const char *path) {
    if (counted < 0) return 0;
    char whole[PATH_MAX];
    if (path[0] == '/') return hit(kind, name, path);
    if (!getcwd(whole, sizeof whole)) return 0;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return hit(kind, name, whole);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define HALF(bytes) ((bytes) > 1 ? (bytes) / 2 : (bytes))

ssize_t write(int file, const void *data, size_t bytes) {
    int fault = hit_file(WRITE, "write", file);
    if (fault > 0) return -1;
    return NEXT(write)(file, data, fault == SHORT ? HALF(bytes) : bytes);
}

ssize_t pwrite64(int file, const void *data, size_t bytes, off64_t at) {
    int fault = hit_file(WRITE, "pwrite", file);
    if (fault > 0) return -1;
    return NEXT(pwrite64)(file, data, fault == SHORT ? HALF(bytes) : bytes, at);
}

ssize_t sendfile64(int out, int in, off64_t *at, size_t bytes);
ssize_t sendfile64(int out, int in, off64_t *at, size_t bytes) {
    int fault = hit_file(WRITE, "sendfile", out);
    if (fault > 0) return -1;
    return NEXT(sendfile64)(out, in, at, fault == SHORT ? HALF(bytes) : bytes);
}

ssize_t read(int file, void *data, size_t bytes) {
    int fault = hit_file(READ, "read", file);
    if (fault > 0) return -1;
    return NEXT(read)(file, data, fault == SHORT ? HALF(bytes) : bytes);
}

int fsync(int file) { return hit_file(WRITE, "fsync", file) > 0 ? -1 : NEXT(fsync)(file); }

int ftruncate64(int file, off64_t length) {
    return hit_file(WRITE, "ftruncate", file) > 0 ? -1 : NEXT(ftruncate64)(file, length);
}

int rename(const char *from, const char *to) { return hit_path(NAME, "rename", to) > 0 ? -1 : NEXT(rename)(from, to); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned int flags) {
    return hit_path(NAME, "renameat2", to) > 0 ? -1 : NEXT(renameat2)(from_at, from, to_at, to, flags);
}

int mkdir(const char *path, mode_t mode) { return hit_path(NAME, "mkdir", path) > 0 ? -1 : NEXT(mkdir)(path, mode); }

int chmod(const char *path, mode_t mode) { return hit_path(NAME, "chmod", path) > 0 ? -1 : NEXT(chmod)(path, mode); }

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, int);
    va_end(rest);
    if (hit_path(flags & O_CREAT ? NAME : READ, "open", path) > 0) return -1;
    return NEXT(open64)(path, flags, mode);
}
