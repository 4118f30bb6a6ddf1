/* A driver library that answers nvidia-ml-py as NVIDIA's would on a machine of several GPUs: tests/test_monitor_gpus.py
 * builds it. Device i has 80 GiB, (i + 1) GiB in use of which 512 MiB are the driver's own reserve in the first version
 * of the call, and a load of 10 * (i + 1) %. The process that WATCHED_PID names holds 300 MiB on device 0 and 200 MiB on
 * device 1; another process holds 100 MiB everywhere. Device 2, where there is one, doesn't answer. */
#include <stdlib.h>
#include <string.h>

typedef struct { int index; } Device;
typedef struct { unsigned long long total, free, used; } Memory1;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Load;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Process;
enum { OK = 0, UNKNOWN = 999, INSUFFICIENT_SIZE = 7 };

static Device devices[] = {{0}, {1}, {2}, {3}};
static const unsigned long long MIB = 1ull << 20;

int nvmlInitWithFlags(unsigned flags) { (void)flags; return OK; }
int nvmlShutdown(void) { return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = (unsigned)atoi(getenv("STAND_IN_GPUS")); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **out) { *out = &devices[index]; return OK; }
int nvmlDeviceGetName(Device *d, char *name, unsigned length) {
  strncpy(name, d->index ? "NVIDIA Stand-in B" : "NVIDIA Stand-in A", length);
  return OK;
}
int nvmlDeviceGetMemoryInfo_v2(Device *d, Memory2 *m) {
  if (d->index == 2) return UNKNOWN;
  m->total = 80 * 1024 * MIB;
  m->reserved = 512 * MIB;
  m->used = (unsigned long long)(d->index + 1) * 1024 * MIB;
  m->free = m->total - m->reserved - m->used;
  return OK;
}
int nvmlDeviceGetMemoryInfo(Device *d, Memory1 *m) {
  Memory2 second;
  int code = nvmlDeviceGetMemoryInfo_v2(d, &second);
  if (code) return code;
  m->total = second.total;
  m->used = second.used + second.reserved;
  m->free = second.free;
  return OK;
}
int nvmlDeviceGetUtilizationRates(Device *d, Load *load) {
  load->gpu = 10u * (unsigned)(d->index + 1);
  load->memory = 0;
  return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, Process *out) {
  unsigned n = d->index < 2 ? 2 : 1;
  if (*count < n) { *count = n; return INSUFFICIENT_SIZE; }
  *count = n;
  out[0] = (Process){1, 100 * MIB, 0, 0};
  if (n == 2) out[1] = (Process){(unsigned)atoi(getenv("WATCHED_PID")), (d->index ? 200 : 300) * MIB, 0, 0};
  return OK;
}
