"""Image restoration: losses, metrics and networks that give pictures back, and how to compare what they give."""

from workbench import MethodReference, hookimpl


@hookimpl
def workbench_methods() -> list[MethodReference]:
    """Methods of this family; nothing heavy is imported until one is used."""
    return [
        MethodReference(
            "restoration.ms_ssim",
            "workbench_restoration.ms_ssim:MSSSIM",
            "Pixel loss or structural loss: what (MS-)SSIM training changes in reconstructions, codes and upscaling",
        ),
    ]
