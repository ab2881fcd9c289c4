/* libnuma for machines that have none: it says so, and nothing else.
 *
 * vLLM's CPU build is linked against these eight functions and cannot be loaded without them. By libnuma's
 * contract (numa(3)) a program that gets -1 from numa_available() must call none of the others; vLLM then
 * leaves memory where the kernel puts it, which on a machine with one node is the same.
 *
 * scripts/bootstrap.py compiles this into the environment only where the system has no libnuma.so.1.
 */

#include <stddef.h>

struct bitmask;

int numa_available(void) { return -1; }

struct bitmask *numa_get_mems_allowed(void) { return NULL; }
struct bitmask *numa_parse_nodestring(const char *nodes) { (void)nodes; return NULL; }
int numa_migrate_pages(int pid, struct bitmask *from, struct bitmask *to)
{
    (void)pid; (void)from; (void)to;
    return -1;
}
void numa_bitmask_free(struct bitmask *mask) { (void)mask; }
void numa_set_interleave_mask(struct bitmask *mask) { (void)mask; }
void numa_set_membind(struct bitmask *mask) { (void)mask; }
void numa_set_strict(int strict) { (void)strict; }
