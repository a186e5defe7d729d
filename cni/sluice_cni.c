/* The CNI plugin `sluice`, compiled: what sluice_cni.py does, without the start of an interpreter.
 *
 * It sends its CNI_* environment and stdin to the node agent's socket, and prints the answer. See
 * sluice_cni.py for the protocol. Both must behave alike: tests/cni runs the same tests on each.
 *
 * It is linked statically and needs no file of the host but the socket. It uses the C library and
 * POSIX only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char DEFAULT_SOCKET[] = "/run/sluice/cni.sock";
static const char *const VERSIONS[] = {"0.3.1", "0.4.0", "1.0.0", "1.1.0"};
enum { NEWEST = 3 };
/* kubelet gives a sandbox 4 minutes; containerd waits for STATUS without a limit of its own. */
enum { TIMEOUT_MS = 120 * 1000, STATUS_TIMEOUT_MS = 5 * 1000 };
/* Levels of nested JSON. The configuration has a handful. */
enum { DEEPEST = 500 };

/* Error codes of the CNI specification 1.1.0, "Error". */
enum {
    INVALID_ENVIRONMENT = 4,
    DECODE = 6,
    INVALID_CONFIG = 7,
    TRY_AGAIN = 11,
    NOT_AVAILABLE = 50, /* STATUS: no ADD can be served */
};

extern char **environ;

struct buffer {
    char *data;
    size_t length, size;
};

/* A string of the configuration. `text` is NULL where the key is absent or no string. */
struct string {
    char *text;
    size_t length;
    bool surrogate; /* half a surrogate pair: no UTF-8 can express it */
};

struct conf {
    struct string version, socket;
};

static void reserve(struct buffer *buffer, size_t more)
{
    if (buffer->size - buffer->length > more)
        return;
    buffer->size = 2 * buffer->size + more + 4096;
    buffer->data = realloc(buffer->data, buffer->size);
    if (buffer->data == NULL)
        abort();
}

static void append(struct buffer *buffer, const char *data, size_t length)
{
    reserve(buffer, length);
    memcpy(buffer->data + buffer->length, data, length);
    buffer->length += length;
}

static void append_text(struct buffer *buffer, const char *text)
{
    append(buffer, text, strlen(text));
}

/* As a JSON string. The text is UTF-8. */
static void append_quoted(struct buffer *buffer, const char *text)
{
    append_text(buffer, "\"");
    for (; *text; text++) {
        char escaped[8];
        if (*text == '"' || *text == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            snprintf(escaped, sizeof escaped, "\\u%04x", *text);
        else
            snprintf(escaped, sizeof escaped, "%c", *text);
        append_text(buffer, escaped);
    }
    append_text(buffer, "\"");
}

static void write_all(const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(STDOUT_FILENO, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            exit(1);
        data += written;
        length -= (size_t)written;
    }
}

static bool is(const struct string *found, const char *text)
{
    return found->text != NULL && found->length == strlen(text) && !found->surrogate &&
           memcmp(found->text, text, found->length) == 0;
}

/* The version to answer in: the configuration's, where we know it. */
static const char *answered_version(const struct conf *conf)
{
    for (int i = 0; i <= NEWEST; i++)
        if (is(&conf->version, VERSIONS[i]))
            return VERSIONS[i];
    return VERSIONS[NEWEST];
}

/* Print a CNI error and exit. */
static _Noreturn void fail(int code, const char *message, const char *details,
                           const struct conf *conf)
{
    struct buffer out = {0};
    char number[32];
    append_text(&out, "{\"cniVersion\": ");
    append_quoted(&out, answered_version(conf));
    snprintf(number, sizeof number, ", \"code\": %d, \"msg\": ", code);
    append_text(&out, number);
    append_quoted(&out, message);
    append_text(&out, ", \"details\": ");
    append_quoted(&out, details);
    append_text(&out, "}\n");
    write_all(out.data, out.length);
    exit(1);
}

/* JSON (RFC 8259). Each function moves `at` past what it read, and returns false on bad input. */

struct json {
    const char *at, *end;
};

static char next(const struct json *json)
{
    return json->at < json->end ? *json->at : '\0';
}

static void skip_space(struct json *json)
{
    while (json->at < json->end && memchr(" \t\r\n", *json->at, 4))
        json->at++;
}

static bool word(struct json *json, const char *text)
{
    size_t length = strlen(text);
    if ((size_t)(json->end - json->at) < length || memcmp(json->at, text, length) != 0)
        return false;
    json->at += length;
    return true;
}

static bool digits(struct json *json)
{
    const char *from = json->at;
    while (next(json) >= '0' && next(json) <= '9')
        json->at++;
    return json->at > from;
}

static bool number(struct json *json)
{
    word(json, "-");
    if (!word(json, "0") && !digits(json))
        return false;
    if (word(json, ".") && !digits(json))
        return false;
    if (word(json, "e") || word(json, "E")) {
        if (!word(json, "+"))
            word(json, "-");
        return digits(json);
    }
    return true;
}

static bool hex4(struct json *json, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++, json->at++) {
        char c = next(json);
        if (c >= '0' && c <= '9')
            *value = *value * 16 + (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            *value = *value * 16 + (uint32_t)((c | 32) - 'a' + 10);
        else
            return false;
    }
    return true;
}

/* The bytes of one character beyond ASCII. Overlong forms and surrogates are no UTF-8. */
static bool utf8(struct json *json, struct buffer *out)
{
    unsigned char c = (unsigned char)*json->at;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    static const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (c < 0xc2 || c > 0xf4 || json->end - json->at <= more)
        return false;
    uint32_t value = c & (0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        unsigned char following = (unsigned char)json->at[i];
        if ((following & 0xc0) != 0x80)
            return false;
        value = value << 6 | (following & 0x3f);
    }
    if (value < least[more] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return false;
    append(out, json->at, (size_t)more + 1);
    json->at += more + 1;
    return true;
}

static void encode_utf8(struct buffer *out, uint32_t value)
{
    char bytes[4];
    int length = value < 0x80 ? 1 : value < 0x800 ? 2 : value < 0x10000 ? 3 : 4;
    static const unsigned char first[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = length - 1; i > 0; i--, value >>= 6)
        bytes[i] = (char)(0x80 | (value & 0x3f));
    bytes[0] = (char)(first[length] | value);
    append(out, bytes, (size_t)length);
}

static bool escape(struct json *json, struct buffer *out, bool *surrogate)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = next(json);
    const char *simple = c ? strchr(from, c) : NULL;
    if (simple != NULL) {
        json->at++;
        append(out, &to[simple - from], 1);
        return true;
    }
    uint32_t value, low;
    if (!word(json, "u") || !hex4(json, &value))
        return false;
    if (value >= 0xd800 && value < 0xe000) {
        struct json ahead = *json;
        if (value < 0xdc00 && word(&ahead, "\\u") && hex4(&ahead, &low) && low >= 0xdc00 &&
            low < 0xe000) {
            *json = ahead;
            value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
        } else {
            *surrogate = true;
            return true;
        }
    }
    encode_utf8(out, value);
    return true;
}

/* A string, without its first quote, which is read. */
static bool string(struct json *json, struct string *found)
{
    struct buffer out = {0};
    bool surrogate = false;
    while (json->at < json->end && *json->at != '"') {
        unsigned char c = (unsigned char)*json->at;
        if (c < 0x20)
            return false;
        if (c == '\\') {
            json->at++;
            if (!escape(json, &out, &surrogate))
                return false;
        } else if (c >= 0x80) {
            if (!utf8(json, &out))
                return false;
        } else {
            append(&out, json->at++, 1);
        }
    }
    append(&out, "", 1);
    *found = (struct string){out.data, out.length - 1, surrogate};
    return word(json, "\"");
}

/* Any value. Of the outermost object, `conf` gets the two keys that matter; elsewhere it is NULL. */
static bool value(struct json *json, struct conf *conf, struct string *found, int depth)
{
    *found = (struct string){0};
    skip_space(json);
    if (word(json, "\""))
        return string(json, found);
    bool object = next(json) == '{';
    if (!object && next(json) != '[')
        return word(json, "true") || word(json, "false") || word(json, "null") || number(json);
    if (depth == DEEPEST)
        return false;
    const char *close = object ? "}" : "]";
    json->at++;
    skip_space(json);
    if (word(json, close))
        return true;
    do {
        struct string key = {0}, held;
        if (object) {
            skip_space(json);
            if (!word(json, "\"") || !string(json, &key))
                return false;
            skip_space(json);
            if (!word(json, ":"))
                return false;
        }
        if (!value(json, NULL, &held, depth + 1))
            return false;
        struct string *wanted = NULL;
        if (conf != NULL && is(&key, "socket"))
            wanted = &conf->socket;
        else if (conf != NULL && is(&key, "cniVersion"))
            wanted = &conf->version;
        if (wanted != NULL)
            *wanted = held;
        else
            free(held.text);
        free(key.text);
        skip_space(json);
    } while (word(json, ","));
    return word(json, close);
}

static struct conf decode(const struct buffer *given)
{
    struct conf conf = {0};
    struct string unused;
    struct json json = {given->data, given->data + given->length};
    skip_space(&json);
    bool object = next(&json) == '{';
    bool whole = value(&json, object ? &conf : NULL, &unused, 0);
    skip_space(&json);
    if (!whole || json.at != json.end) {
        char where[64];
        snprintf(where, sizeof where, "bad syntax at byte %td", json.at - given->data);
        fail(DECODE, "stdin: the network configuration is not JSON", where, &(struct conf){0});
    }
    if (!object)
        fail(DECODE, "stdin: the network configuration is not a JSON object", "", &conf);
    return conf;
}

static long long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Wait for the socket; false with a reason when the time is over. */
static bool wait_for(int file, short events, long long deadline, int limit, char *why, size_t size)
{
    struct pollfd polled = {file, events, 0};
    for (;;) {
        long long left = deadline - now_ms();
        if (left <= 0) {
            snprintf(why, size, "no answer within %d seconds", limit / 1000);
            return false;
        }
        int ready = poll(&polled, 1, (int)left);
        if (ready > 0)
            return true;
        if (ready < 0 && errno != EINTR) {
            snprintf(why, size, "%s", strerror(errno));
            return false;
        }
    }
}

/* Send the request and read the whole answer; false with a reason. */
static bool ask(const char *path, const struct buffer *request, int limit, struct buffer *answer,
                char *why, size_t size)
{
    long long deadline = now_ms() + limit;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        snprintf(why, size, "AF_UNIX path too long");
        return false;
    }
    strcpy(address.sun_path, path);
    int file = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* Where too many wait already, the kernel refuses one more at once. */
    if (file < 0 || connect(file, (struct sockaddr *)&address, sizeof address) < 0) {
        snprintf(why, size, "%s", strerror(errno));
        return false;
    }
    for (size_t sent = 0; sent < request->length;) {
        ssize_t done = send(file, request->data + sent, request->length - sent, MSG_NOSIGNAL);
        if (done >= 0) {
            sent += (size_t)done;
        } else if (errno != EAGAIN && errno != EINTR) {
            snprintf(why, size, "%s", strerror(errno));
            return false;
        } else if (!wait_for(file, POLLOUT, deadline, limit, why, size)) {
            return false;
        }
    }
    shutdown(file, SHUT_WR);
    for (;;) {
        if (!wait_for(file, POLLIN, deadline, limit, why, size))
            return false;
        reserve(answer, 65536);
        ssize_t got = recv(file, answer->data + answer->length, 65536, 0);
        if (got == 0)
            break;
        if (got > 0) {
            answer->length += (size_t)got;
        } else if (errno != EAGAIN && errno != EINTR) {
            snprintf(why, size, "%s", strerror(errno));
            return false;
        }
    }
    if (answer->length == 0 || (answer->data[0] != '0' && answer->data[0] != '1')) {
        snprintf(why, size, "it hung up without an answer");
        return false;
    }
    return true;
}

static const char *socket_path(const struct conf *conf)
{
    static const char message[] = "stdin: socket: the value cannot be a path";
    if (conf->socket.text == NULL)
        return DEFAULT_SOCKET;
    if (conf->socket.surrogate)
        fail(INVALID_CONFIG, message, "it holds half a surrogate pair", conf);
    if (strlen(conf->socket.text) != conf->socket.length)
        fail(INVALID_CONFIG, message, "it holds a NUL", conf);
    return conf->socket.text;
}

/* Answer VERSION, which needs no agent. */
static _Noreturn void version(const struct conf *conf)
{
    struct buffer out = {0};
    append_text(&out, "{\"cniVersion\": ");
    append_quoted(&out, answered_version(conf));
    append_text(&out, ", \"supportedVersions\": [");
    for (int i = 0; i <= NEWEST; i++) {
        append_text(&out, i ? ", " : "");
        append_quoted(&out, VERSIONS[i]);
    }
    append_text(&out, "]}\n");
    write_all(out.data, out.length);
    exit(0);
}

/* All of stdin; nothing where it is closed. */
static struct buffer read_stdin(void)
{
    struct buffer read_in = {0};
    for (;;) {
        reserve(&read_in, 65536);
        ssize_t got = read(STDIN_FILENO, read_in.data + read_in.length, 65536);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return read_in;
        read_in.length += (size_t)got;
    }
}

int main(void)
{
    const char *command = getenv("CNI_COMMAND");
    struct buffer given = read_stdin();
    struct conf conf = decode(&given);
    if (command == NULL || !*command)
        fail(INVALID_ENVIRONMENT, "CNI_COMMAND is not set", "a container runtime runs this", &conf);
    if (strcmp(command, "VERSION") == 0)
        version(&conf);
    bool status = strcmp(command, "STATUS") == 0;
    const char *path = socket_path(&conf);
    struct buffer request = {0}, answer = {0};
    for (char **variable = environ; *variable != NULL; variable++)
        if (strncmp(*variable, "CNI_", 4) == 0)
            append(&request, *variable, strlen(*variable) + 1);
    append(&request, "", 1);
    append(&request, given.data, given.length);
    char why[256];
    if (!ask(path, &request, status ? STATUS_TIMEOUT_MS : TIMEOUT_MS, &answer, why, sizeof why)) {
        struct buffer message = {0}, details = {0};
        append_text(&message, "the Sluice node agent does not answer at ");
        append(&message, path, strlen(path) + 1);
        append_text(&details, why);
        append_text(&details, "; is the agent of this node running, and is \"socket\" in the CNI "
                              "configuration its socket?");
        append(&details, "", 1);
        fail(status ? NOT_AVAILABLE : TRY_AGAIN, message.data, details.data, &conf);
    }
    write_all(answer.data + 1, answer.length - 1);
    return answer.data[0] == '0' ? 0 : 1;
}
