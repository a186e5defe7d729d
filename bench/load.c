/*
 * One connection at a time, as fast as it goes: what costs the network, and little else.
 *
 *   load serve|sink PORT
 *   load rr|crr ADDRESS PORT SECONDS      prints transactions a second
 *   load stream ADDRESS PORT SECONDS      prints Mbit/s that a sink received
 *
 * rr: one byte there and back, on one connection. crr: connect, one byte there and back, close.
 */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char block[1 << 17];

static void must(int is_so, const char *what)
{
    if (!is_so) {
        perror(what);
        exit(1);
    }
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static int new_socket(void)
{
    int on = 1, made = socket(AF_INET, SOCK_STREAM, 0);
    must(made >= 0, "socket");
    must(setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) == 0, "TCP_NODELAY");
    must(setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0, "SO_REUSEADDR");
    return made;
}

static struct sockaddr_in address(const char *host, const char *port)
{
    struct sockaddr_in made = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    must(inet_pton(AF_INET, host, &made.sin_addr) == 1, "address");
    return made;
}

static int listening_at(const char *port)
{
    struct sockaddr_in here = address("0.0.0.0", port);
    int made = new_socket();
    must(bind(made, (struct sockaddr *)&here, sizeof here) == 0, "bind");
    must(listen(made, 16) == 0, "listen");
    return made;
}

static void sink(const char *port)
{
    int listening = listening_at(port);
    for (;;) {
        int peer = accept(listening, NULL, NULL);
        must(peer >= 0, "accept");
        while (read(peer, block, sizeof block) > 0)
            ;
        close(peer);
    }
}

static void serve(const char *port)
{
    int listening = listening_at(port), on = 1;
    for (;;) {
        char byte;
        int peer = accept(listening, NULL, NULL);
        must(peer >= 0, "accept");
        setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        while (read(peer, &byte, 1) == 1 && write(peer, &byte, 1) == 1)
            ;
        close(peer);
    }
}

static int dialled(const struct sockaddr_in *there)
{
    int made = new_socket();
    must(connect(made, (const struct sockaddr *)there, sizeof *there) == 0, "connect");
    return made;
}

static void there_and_back(int peer)
{
    char byte = 'x';
    must(write(peer, &byte, 1) == 1, "write");
    must(read(peer, &byte, 1) == 1, "read");
}

/* Until the sink has read everything, which it says by closing. */
static void stream(const struct sockaddr_in *there, double seconds)
{
    double began = now(), end = began + seconds;
    long sent = 0;
    int peer = dialled(there);
    while (now() < end) {
        ssize_t written = write(peer, block, sizeof block);
        must(written > 0, "write");
        sent += written;
    }
    must(shutdown(peer, SHUT_WR) == 0, "shutdown");
    must(read(peer, block, 1) == 0, "read");
    printf("%.1f\n", 8 * sent / (now() - began) / 1e6);
}

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "serve") == 0)
        serve(words[2]);
    if (count == 3 && strcmp(words[1], "sink") == 0)
        sink(words[2]);
    must(count == 5, "usage: load serve|sink PORT | rr|crr|stream ADDRESS PORT SECONDS");
    int again = strcmp(words[1], "crr") == 0;
    struct sockaddr_in there = address(words[2], words[3]);
    if (strcmp(words[1], "stream") == 0) {
        stream(&there, atof(words[4]));
        return 0;
    }
    double began = now(), end = began + atof(words[4]);
    long done = 0;
    int peer = dialled(&there);
    for (there_and_back(peer); now() < end; done++) {
        if (again) {
            close(peer);
            peer = dialled(&there);
        }
        there_and_back(peer);
    }
    printf("%.1f\n", done / (now() - began));
    return 0;
}
