/* What autograd asks the CUDA runtime and the driver (as which this is loaded) about tensors on `cuda:0`. */
signed char pretended_devices = 0; /* none while torch is loaded */
signed char _ZN3c104cuda12device_countEv(void) { return pretended_devices; } /* c10::cuda::device_count() */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;
    *active = 0;
    return 0;
}
