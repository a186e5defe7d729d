/*
 * A CNI plugin that runs another one, and notes how long its calls take.
 *
 * Called .../timed-NAME it runs NAME, which stands beside it, with the same environment, stdin and
 * stdout, and ends as that does. Each call adds a line to timed.log there: NAME COMMAND SECONDS.
 */
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PREFIX "timed-"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void must(int is_so, const char *what)
{
    if (!is_so) {
        perror(what);
        exit(1);
    }
}

int main(int argc, char **argv, char **environment)
{
    double began = now();
    const char *command = getenv("CNI_COMMAND");
    const char *slash = argc > 0 ? strrchr(argv[0], '/') : NULL;
    must(command && slash && !strncmp(slash + 1, PREFIX, strlen(PREFIX)), "called by no runtime");
    const char *name = slash + 1 + strlen(PREFIX);
    int directory = slash - argv[0] + 1;

    char path[PATH_MAX];
    must(snprintf(path, sizeof path, "%.*s%s", directory, argv[0], name) < PATH_MAX, argv[0]);
    char *plugin[] = {path, NULL};
    pid_t process;
    int status;
    must(posix_spawn(&process, path, NULL, NULL, plugin, environment) == 0, path);
    must(waitpid(process, &status, 0) == process, path);
    double seconds = now() - began;

    char line[PATH_MAX];
    int length = snprintf(line, sizeof line, "%s %s %.6f\n", name, command, seconds);
    must(snprintf(path, sizeof path, "%.*stimed.log", directory, argv[0]) < PATH_MAX, argv[0]);
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    /* At once, so that calls at the same time do not mix. */
    must(log >= 0 && write(log, line, length) == length, path);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
