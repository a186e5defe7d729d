/*
 * One connection at a time, as fast as it goes: what costs the network, and little else.
 *
 *   load serve PORT
 *   load rr|crr ADDRESS PORT SECONDS      prints transactions a second
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

static void serve(const char *port)
{
    struct sockaddr_in here = address("0.0.0.0", port);
    int listening = new_socket(), on = 1;
    must(bind(listening, (struct sockaddr *)&here, sizeof here) == 0, "bind");
    must(listen(listening, 16) == 0, "listen");
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

int main(int count, char **words)
{
    if (count == 3 && strcmp(words[1], "serve") == 0)
        serve(words[2]);
    must(count == 5, "usage: load serve PORT | rr|crr ADDRESS PORT SECONDS");
    int again = strcmp(words[1], "crr") == 0;
    struct sockaddr_in there = address(words[2], words[3]);
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
